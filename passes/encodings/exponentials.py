"""Which values backward exponentiates: they may be kept in codes of many bits only, whatever noise adds today.

Fused attention makes its probabilities again in backward, as exp(query · key - logsumexp). At random weights scores are
nearly 0, and noise in queries and keys adds next to nothing; a model that has learned to attend has scores of 10 and
more, and noise of a share of them is exponentiated. What has been measured of such noise says nothing of what it will
be, unlike of noise in factors, which stays in proportion.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from ..calls import operation_name
from ..step_graph import StepGraph
from .backward_reads import ValueRead, reads_as

FEWEST_BITS = 6
"""Scores of 10 then are off by 0.05, where queries and keys have 32 features (by less where they have more)."""

_OF_ATTENTION = frozenset(("query", "key", "logsumexp", "bias", "attn_bias", "attn_mask"))
_EXPONENTIALS = frozenset(("exp", "exp2", "expm1", "sinh", "cosh", "_softmax", "_log_softmax", "logsumexp"))


def is_exponentiated(step: StepGraph, reads: Iterable[ValueRead]) -> bool:
    """Whether any of a value's reads exponentiates it, or what is made of it alone."""
    return any(reads_as(step, call, storage, operands) for call, storage in reads if (operands := _operands(call)))


def _operands(call: fx.Node) -> frozenset[str]:
    """Which operands of a call are exponentiated."""
    name = operation_name(call)
    if "attention" in name and name.endswith("backward"):
        return _OF_ATTENTION
    if name == "_log_softmax_backward_data":
        return frozenset(("output",))
    return frozenset(("self",)) if name in _EXPONENTIALS else frozenset()
