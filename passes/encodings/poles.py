"""Which values backward divides by, or takes a root or a logarithm of: noise that brings them near 0 has no bounds.

A code gives an element back up to half a level off, and its levels are as wide as its group: where one element of a
group has outgrown the others, these come back as 0, or below. That noise is small today says nothing of it. So such
values have no code that adds noise, as those that are compared have none.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from ..calls import arguments_of, operation_name
from ..step_graph import StepGraph
from .backward_reads import ValueRead, reads_as

# Which operand has a pole, or a branch point, at 0 or at another place.
_OPERANDS = {
    **dict.fromkeys(("div", "remainder", "atan2", "xlogy"), "other"),
    **dict.fromkeys(
        ("reciprocal", "rsqrt", "sqrt", "log", "log1p", "log2", "log10", "tan", "digamma", "lgamma"), "self"
    ),
    **dict.fromkeys(("logit", "erfinv", "acosh", "atanh", "asin", "acos"), "self"),
}


def has_a_pole(step: StepGraph, reads: Iterable[ValueRead]) -> bool:
    """Whether any of a value's reads divides by it, or by what is made of it alone."""
    return any(reads_as(step, call, storage, operands) for call, storage in reads if (operands := _operands(call)))


def _operands(call: fx.Node) -> tuple[str, ...]:
    """Which operands of a call it has a pole in."""
    name = operation_name(call)
    if name == "pow":
        exponent = arguments_of(call)["exponent"]
        is_polynomial = isinstance(exponent, (int, float)) and exponent >= 0 and exponent == int(exponent)
        return () if is_polynomial else ("self",)
    return (_OPERANDS[name],) if name in _OPERANDS else ()
