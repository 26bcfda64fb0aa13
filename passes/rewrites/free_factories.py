"""Removes a factory's dependence on a tensor of which it reads only the shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..graph_pass import GraphPass, rewrite_calls

aten = torch.ops.aten

# The number that each factory fills with, from its arguments; None if it leaves memory as it is.
_FILLS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((aten.empty_like.default, aten.new_empty.default, aten.new_empty_strided.default), lambda *_: None),
    **dict.fromkeys((aten.zeros_like.default, aten.new_zeros.default), lambda *_: 0),
    **dict.fromkeys((aten.ones_like.default, aten.new_ones.default), lambda *_: 1),
    aten.full_like.default: lambda like, fill: fill,
    aten.new_full.default: lambda like, shape, fill: fill,
}


@dataclass(frozen=True)
class FreeFactories(GraphPass):
    """Replaces factories that take another tensor's shape by factories that take the shape as a constant.

    before: empty = aten.empty_like.default(x)
    after:  empty = aten.empty_strided.default([4, 256], [256, 1], dtype=torch.float32, device=device("cpu"))

    Otherwise recomputing the kernel would need x, of which it reads no element.
    """

    name: ClassVar[str] = "free_factories"
    fidelity: ClassVar[str] = "bitwise"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        return rewrite_calls(graph, dict.fromkeys(_FILLS, _free))


def _free(node: fx.Node) -> None:
    graph, value, fill = node.graph, node.meta["val"], _FILLS[node.target](*node.args)
    if fill is None:
        target, args = aten.empty_strided.default, (list(value.shape), list(value.stride()))
    elif _lies_as_made(value):
        target, args = aten.full.default, (list(value.shape), fill)
    else:
        return
    with graph.inserting_before(node):
        new = graph.call_function(target, args, {"dtype": value.dtype, "device": value.device})
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _lies_as_made(value: torch.Tensor) -> bool:
    """Return whether `full` lays out a tensor of that shape so: a dimension of one element may have any stride else."""
    return value.stride() == torch.empty(value.shape, device="meta").stride()
