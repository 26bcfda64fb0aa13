"""Removes a factory's dependence on a tensor of which it reads only the shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

aten = torch.ops.aten


@dataclass(frozen=True)
class FreeFactories:
    """Replaces factories that take another tensor's shape by factories that take the shape as a constant.

    before: empty = aten.empty_like.default(x)
    after:  empty = aten.empty_strided.default([4, 256], [256, 1], dtype=torch.float32, device=device("cpu"))

    Otherwise recomputing the kernel would need x, of which it reads no element.
    """

    name: str = "free_factories"
    fidelity: str = "bitwise"

    def __call__(self, graph: fx.GraphModule) -> fx.GraphModule:
        for node in list(graph.graph.nodes):
            fill = _fill_value(node)
            if fill is None:
                continue
            value = node.meta["val"]
            if fill == "nothing":
                target, args = aten.empty_strided.default, [list(value.shape), list(value.stride())]
            elif _lies_as_made(value):
                target, args = aten.full.default, [list(value.shape), fill]
            else:
                continue
            with graph.graph.inserting_before(node):
                new = graph.graph.call_function(target, tuple(args), {"dtype": value.dtype, "device": value.device})
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.graph.erase_node(node)
        graph.graph.lint()
        return graph


def _lies_as_made(value: torch.Tensor) -> bool:
    """Whether `full` lays out a tensor of that shape so: a dimension of one element may have any stride else."""
    return value.stride() == torch.empty(value.shape, device="meta").stride()


def _fill_value(node: fx.Node) -> object:
    """Return the number that a shape-only factory fills with; None for any other node."""
    if node.op != "call_function":
        return None
    match str(node.target):
        case "aten.empty_like.default" | "aten.new_empty.default" | "aten.new_empty_strided.default":
            return "nothing"
        case "aten.zeros_like.default" | "aten.new_zeros.default":
            return 0
        case "aten.ones_like.default" | "aten.new_ones.default":
            return 1
        case "aten.full_like.default":
            return node.args[1]
        case "aten.new_full.default":
            return node.args[2]
    return None
