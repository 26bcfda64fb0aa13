"""Recognizes calls of operations that are not torch's own, or that return nothing, and runs them under their
autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

_KNOWN = ("aten", "lowtide", "prim", "profiler")
# Every process of a group has to call them, as often as the others and in the same order.
_COLLECTIVE = ("_c10d_functional", "_c10d_functional_autograd", "_dtensor", "c10d", "symm_mem")


def is_foreign(target: Any) -> bool:
    """Return whether an operation is neither torch's own nor lowtide's."""
    return isinstance(target, torch._ops.OpOverload) and target.namespace not in _KNOWN


def runs_alone(target: Any) -> bool:
    """Return whether an operation may be run to measure it: not if it does anything other than return a result."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return bool(target._schema.returns) and target.namespace not in _COLLECTIVE


def with_autocast(node: fx.Node) -> Callable[..., Any]:
    """Return the operation of a call as a function of operands, under the autocast that it was recorded under."""
    assert callable(node.target)
    return _in_autocast(node.target, *node.meta["autocast"]) if node.meta.get("autocast") else node.target


def present_autocast(args: Any) -> tuple[str, torch.dtype] | None:
    """Return the device type and dtype of the present autocast for the first tensor of some arguments, if any."""
    device_type = next((argument.device.type for argument in args if isinstance(argument, torch.Tensor)), "cpu")
    enabled = torch.is_autocast_enabled(device_type)
    return (device_type, torch.get_autocast_dtype(device_type)) if enabled else None


@dataclass(frozen=True)
class InAutocast:
    """An operation run under autocast. The kernel of an operation that is not torch's own may call others that cast."""

    operation: Callable[..., Any]
    device_type: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.operation} under autocast to {self.dtype}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.device_type, self.dtype, cache_enabled=False):
            return self.operation(*args, **kwargs)


_in_autocast = cache(InAutocast)


def is_effect(node: fx.Node) -> bool:
    """Return whether a call returns nothing, so that it exists for its effect: a check, a report."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.returns
