"""Which values backward exponentiates: they may be kept in codes of many bits only, whatever noise adds today.

Fused attention makes its probabilities again in backward, as exp(query · key - logsumexp). At random weights scores are
nearly 0, and noise in queries and keys adds next to nothing; a model that has learned to attend has scores of 10 and
more, and noise of a share of them is exponentiated. What has been measured of such noise says nothing of what it will
be, unlike of noise in factors, which stays in proportion.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from .call_signature import arguments_of, operation_name
from .comparisons import reads_of_values
from .step_graph import Kernel, StepGraph

FEWEST_BITS = 6
"""Scores of 10 then are off by 0.05, where queries and keys have 32 features (by less where they have more)."""

_OF_ATTENTION = frozenset(("query", "key", "logsumexp", "bias", "attn_bias", "attn_mask"))
_EXPONENTIALS = frozenset(("exp", "exp2", "expm1", "sinh", "cosh", "_softmax", "_log_softmax", "logsumexp"))


def is_exponentiated(step: StepGraph, storage: int, readers: Sequence[Kernel]) -> bool:
    """Whether kernels of backward, `readers`, exponentiate what lies in a storage, or what they make of it alone."""
    return any(_exponentiates(step, call, read) for call, read in reads_of_values(step, storage, readers))


def _exponentiates(step: StepGraph, call: fx.Node, storage: int) -> bool:
    operands = _operands(operation_name(call))
    told = arguments_of(call) if operands else {}
    read = [told[operand] for operand in operands if isinstance(told.get(operand), fx.Node)]
    return any(step.storage_of.get(node) == storage for node in read)


def _operands(name: str) -> frozenset[str]:
    """Which operands of an operation are exponentiated."""
    if "attention" in name and name.endswith("backward"):
        return _OF_ATTENTION
    if name == "_log_softmax_backward_data":
        return frozenset(("output",))
    return frozenset(("self",)) if name in _EXPONENTIALS else frozenset()
