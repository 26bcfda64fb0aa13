"""A graph of calls as data: torch.fx makes no Python of it, so that no name in it can become code."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .foreign_calls import with_autocast


class JointGraph(fx.GraphModule):
    """A `GraphModule` that cannot be called: fx would write the names of inputs and operations into code and run it."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(torch.nn.Module(), graph)

    def recompile(self) -> Any:
        """Do nothing; to run the graph, evaluate it node by node (`evaluate_graph`)."""


def evaluate_graph(graph: fx.Graph, *inputs: torch.Tensor) -> Any:
    """Return the result of a graph for the values of its placeholders, in their order."""
    values: dict[fx.Node, Any] = {}
    remaining = iter(inputs)
    for node in graph.nodes:
        if node.op == "output":
            return fx.map_arg(node.args[0], values.__getitem__)
        if node.op == "placeholder":
            values[node] = next(remaining)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)  # pyright: ignore
            values[node] = with_autocast(node)(*args, **kwargs)
    raise ValueError("a graph without an output cannot be evaluated")
