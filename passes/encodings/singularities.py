"""Finds values that backward divides by, or takes a root or a logarithm of: noise that brings them near 0 is unbounded.

A code restores an element up to half a level off, and its levels are as wide as its group. Where one element of a
group has outgrown the others, these come back as 0, or below. Small noise today does not predict later noise. So these
values have no code that adds noise, like values that are compared.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from ..calls import arguments_of, operation_name
from ..step_graph import StepGraph
from .backward_reads import ValueRead, reads_as

# The operand that has a singularity, or a branch point, at 0 or at another place.
_OPERANDS = {
    **dict.fromkeys(("div", "remainder", "atan2", "xlogy"), "other"),
    **dict.fromkeys(
        ("reciprocal", "rsqrt", "sqrt", "log", "log1p", "log2", "log10", "tan", "digamma", "lgamma"), "self"
    ),
    **dict.fromkeys(("logit", "erfinv", "acosh", "atanh", "asin", "acos"), "self"),
}


def has_singularity(step: StepGraph, reads: Iterable[ValueRead]) -> bool:
    """Return whether any of a value's reads divides by it, or by a result made of it alone."""
    return any(reads_as(step, call, storage, operands) for call, storage in reads if (operands := _operands(call)))


def _operands(call: fx.Node) -> tuple[str, ...]:
    """Return the operands of a call in which it has a singularity."""
    name = operation_name(call)
    if name == "pow":
        exponent = arguments_of(call)["exponent"]
        is_polynomial = isinstance(exponent, (int, float)) and exponent >= 0 and exponent == int(exponent)
        return () if is_polynomial else ("self",)
    return (_OPERANDS[name],) if name in _OPERANDS else ()
