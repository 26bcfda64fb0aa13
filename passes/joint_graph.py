"""A graph of calls as data: torch.fx makes no Python of it, so that no name in it can become code."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .foreign_calls import with_autocast
from .sources import Source


class JointGraph(fx.GraphModule):
    """A `GraphModule` that cannot be called: fx would write the names of inputs and operations into code and run it."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__(torch.nn.Module(), graph)

    def recompile(self) -> Any:
        """Do nothing; to run the graph, evaluate it node by node (`evaluate_graph`)."""


def joint_outputs(
    graph: fx.GraphModule,
) -> tuple[tuple[fx.Node, ...], dict[Source, fx.Node], dict[Source, fx.Node]]:
    """Return the outputs of a joint graph, its gradients, and the new values of what forward changes.

    The graph's output is three tuples of nodes. Its `meta` holds the sources that the last two belong to, as
    "gradients" and "mutations".
    """
    output = next(node for node in reversed(graph.graph.nodes) if node.op == "output")
    outputs, gradients, new_values = output.args[0]  # pyright: ignore
    by_source = (
        dict(zip(output.meta[name], nodes, strict=True))
        for name, nodes in (("gradients", gradients), ("mutations", new_values))
    )
    return outputs, *by_source  # pyright: ignore


def copy_graph(graph: fx.GraphModule) -> JointGraph:
    """Return the graph with new nodes over the same tensors without data."""
    copy = fx.Graph()
    results: Any = copy.graph_copy(graph.graph, {}, return_output_node=True)
    values, output = results
    copy.output(values).meta = dict(output.meta)
    return JointGraph(copy)


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
