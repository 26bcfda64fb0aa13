"""Gives kernels of backward that look only at an operand's shape a tensor of that shape without its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..graph_pass import GraphPass, rewrite_calls

aten = torch.ops.aten

# These kernels read no element of their second operand.
_SHAPE_ONLY = (aten.avg_pool2d_backward.default, aten._adaptive_avg_pool2d_backward.default)


@dataclass(frozen=True)
class KeepShapes(GraphPass):
    """Replaces the input of an average pooling, in backward, by one element spread over its shape.

    before: gradient = aten.avg_pool2d_backward.default(g, x, [2, 2], [2, 2], [0, 0], False, True, None)
    after:  one = aten.empty_strided.default([1], [1]); spread = aten.expand.default(one, [8, 16, 32, 32]);
            gradient = aten.avg_pool2d_backward.default(g, spread, [2, 2], [2, 2], [0, 0], False, True, None)

    Only for contiguous operands, as the gradient is laid out like the operand.
    """

    name: ClassVar[str] = "shape_only"
    fidelity: ClassVar[str] = "bitwise"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        return rewrite_calls(graph, dict.fromkeys(_SHAPE_ONLY, _forget_shape))


def _forget_shape(node: fx.Node) -> None:
    x: Any = node.args[1]
    value = x.meta["val"]
    if value.is_contiguous() and value.numel() > 1 and node.meta["val"].is_contiguous():
        node.replace_input_with(x, _spread(node, value))


def _spread(before: fx.Node, value: torch.Tensor) -> fx.Node:
    graph, keywords = before.graph, {"dtype": value.dtype, "device": value.device}
    with graph.inserting_before(before):
        element = graph.call_function(aten.empty_strided.default, ([1], [1]), keywords)
        spread = graph.call_function(aten.expand.default, (element, list(value.shape)))
    element.meta = {**before.meta, "val": value.new_empty((1,))}
    spread.meta = {**before.meta, "val": element.meta["val"].expand(value.shape)}
    return spread
