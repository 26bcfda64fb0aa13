"""Defines passes over joint graphs: they rewrite a copy, or in place a graph that the pipeline has copied."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import fx

from .joint_graph import copy_graph


class GraphPass(ABC):
    """A pass over joint graphs. Called with a graph, it returns a rewritten copy.

    name: the name of its savings in reports.
    fidelity: the strictest fidelity that allows it.
    """

    name: ClassVar[str]
    fidelity: ClassVar[str]

    def __call__(self, graph: fx.GraphModule) -> fx.GraphModule:
        copy = copy_graph(graph)
        self.rewrite(copy)
        return copy

    @abstractmethod
    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Rewrite a graph of the caller's own in place; return False if there was nothing to rewrite."""


def rewrite_calls(graph: fx.GraphModule, rewrites: Mapping[Any, Callable[[fx.Node], None]]) -> bool:
    """Rewrite each call of some operations in place, in order; return whether there are any.

    rewrites: by operation the function that changes a call, or what lies around it.
    """
    nodes = [node for node in graph.graph.nodes if node.target in rewrites]
    for node in nodes:
        rewrites[node.target](node)
    if nodes:
        graph.graph.lint()
    return bool(nodes)
