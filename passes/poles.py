"""Which values backward divides by, or takes a root or a logarithm of: noise that brings them near 0 has no bounds.

A code gives an element back up to half a level off, and its levels are as wide as its group: where one element of a
group has outgrown the others, these come back as 0, or below. That noise is small today says nothing of it. So such
values have no code that adds noise, as those that are compared have none.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from .call_signature import arguments_of, operation_name
from .comparisons import reads_of_values
from .step_graph import Kernel, StepGraph

# Which operand has a pole, or a branch point, at 0 or at another place.
_OPERANDS = {
    **dict.fromkeys(("div", "remainder", "atan2", "xlogy"), "other"),
    **dict.fromkeys(
        ("reciprocal", "rsqrt", "sqrt", "log", "log1p", "log2", "log10", "tan", "digamma", "lgamma"), "self"
    ),
    **dict.fromkeys(("logit", "erfinv", "acosh", "atanh", "asin", "acos"), "self"),
}


def has_a_pole(step: StepGraph, storage: int, readers: Sequence[Kernel]) -> bool:
    """Whether kernels of backward, `readers`, divide by what lies in a storage, or by what they make of it alone."""
    return any(_divides(step, call, read) for call, read in reads_of_values(step, storage, readers))


def _divides(step: StepGraph, call: fx.Node, storage: int) -> bool:
    name = operation_name(call)
    if name not in _OPERANDS and name != "pow":
        return False
    told = arguments_of(call)
    if name == "pow":
        exponent = told["exponent"]
        is_polynomial = isinstance(exponent, (int, float)) and exponent >= 0 and exponent == int(exponent)
        operand = None if is_polynomial else told["self"]
    else:
        operand = told.get(_OPERANDS[name])
    return isinstance(operand, fx.Node) and step.storage_of.get(operand) == storage
