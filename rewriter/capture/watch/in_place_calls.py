"""Marks the recorded calls that eager runs in place, which functionalization does not report."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode

from ..torch_internals import present_value


class InPlaceCallsNoted(TorchFunctionMode):
    """A mode that sets `meta["eager_in_place"]` of calls recorded while a torch function changes its first operand.

    graph: the graph that is being recorded. In-place changes by autograd itself are not marked.
    expect: called with the tensor without data that a call may change in place, and with None afterwards.
    """

    def __init__(self, graph: fx.Graph, expect: Callable[[torch.Tensor | None], None]) -> None:
        super().__init__()
        self.graph, self.expect = graph, expect

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changed = args[0] if args else None
        if not isinstance(changed, torch.Tensor) or changed.is_inference():
            return func(*args, **(kwargs or {}))
        version, last = changed._version, next(iter(reversed(self.graph.nodes)), None)
        may_change = getattr(func, "__name__", "").endswith("_")  # also `__iadd__` and `__setitem__`
        self.expect(present_value(changed) if may_change else None)
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self.expect(None)
        if changed._version != version:
            for node in takewhile(lambda node: node is not last, reversed(self.graph.nodes)):
                node.meta["eager_in_place"] = True
        return result
