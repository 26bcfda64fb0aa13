"""Finds values that backward exponentiates: they may only be kept in codes of many bits, whatever their noise adds now.

Fused attention recomputes its probabilities in backward, as exp(query · key - logsumexp). At random weights scores are
nearly 0, and noise in queries and keys adds next to nothing. A model that has learned to attend has scores of 10 and
more, and noise of a share of them is exponentiated. Measurements of such noise do not predict its later size, unlike
those of noise in factors, which stays in proportion.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from ..calls import operation_name
from ..step_graph import StepGraph
from .backward_reads import ValueRead, reads_as

FEWEST_BITS = 6
"""The fewest bits of such codes: scores of 10 are then off by 0.05 with 32 features of queries and keys, less with
more.
"""

_OF_ATTENTION = frozenset(("query", "key", "logsumexp", "bias", "attn_bias", "attn_mask"))
_EXPONENTIALS = frozenset(("exp", "exp2", "expm1", "sinh", "cosh", "_softmax", "_log_softmax", "logsumexp"))


def is_exponentiated(step: StepGraph, reads: Iterable[ValueRead]) -> bool:
    """Return whether any of a value's reads exponentiates it, or a result made of it alone."""
    return any(reads_as(step, call, storage, operands) for call, storage in reads if (operands := _operands(call)))


def _operands(call: fx.Node) -> frozenset[str]:
    """Return the operands of a call that are exponentiated."""
    name = operation_name(call)
    if "attention" in name and name.endswith("backward"):
        return _OF_ATTENTION
    if name == "_log_softmax_backward_data":
        return frozenset(("output",))
    return frozenset(("self",)) if name in _EXPONENTIALS else frozenset()
