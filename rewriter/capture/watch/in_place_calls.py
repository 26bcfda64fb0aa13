"""Mark the recorded calls that eager runs in place, which functionalization does not report."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode


class InPlaceCallsNoted(TorchFunctionMode):
    """A mode that sets `meta["eager_in_place"]` of calls recorded while a torch function changes its first operand.

    graph: the graph that is being recorded. In-place changes by autograd itself are not marked.
    """

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changed = args[0] if args else None
        if not isinstance(changed, torch.Tensor) or changed.is_inference():
            return func(*args, **(kwargs or {}))
        version, last = changed._version, next(iter(reversed(self.graph.nodes)), None)
        result = func(*args, **(kwargs or {}))
        if changed._version != version:
            for node in takewhile(lambda node: node is not last, reversed(self.graph.nodes)):
                node.meta["eager_in_place"] = True
        return result
