"""Finds the calls of backward for a few operations of forward, so that both can be replaced together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True)
class Backward:
    """The backward of operations with one result, of which one operand needs a gradient.

    nodes: the calls of backward.
    incoming: the gradient of the result.
    outgoing: the gradient of the operand, as the last of `nodes` makes it.
    """

    nodes: frozenset[fx.Node]
    incoming: fx.Node
    outgoing: fx.Node


def nodes_of_backward(graph: fx.Graph, forward: Iterable[fx.Node]) -> list[fx.Node]:
    """Return all calls of backward for some operations of forward, in order."""
    numbers = {node.meta["sequence"] for node in forward}
    return [
        node
        for node in graph.nodes
        if node.op == "call_function" and node.meta["phase"] == "backward" and node.meta["sequence"] in numbers
    ]


def forward_users(node: fx.Node) -> list[fx.Node]:
    """Return the calls of forward that read a node."""
    return [user for user in node.users if user.meta.get("phase") == "forward"]


def match_backward(forward: Iterable[fx.Node], operand: fx.Node) -> Backward | None:
    """Return the backward of some operations of forward, matched by autograd's numbers; None if other values enter or
    leave it.

    operand: the node that all of them are computed from.
    """
    own = set(forward)
    nodes = nodes_of_backward(operand.graph, own)
    inside = set(nodes)
    incoming, outgoing = set(), []
    for node in nodes:
        incoming |= {read for read in node.all_input_nodes if read not in inside | own and read is not operand}
        if any(user not in inside for user in node.users):
            outgoing.append(node)
    if len(incoming) != 1 or len(outgoing) != 1:
        return None
    (gradient,) = incoming
    if gradient.meta.get("phase") != "backward":
        return None
    return Backward(frozenset(inside), gradient, outgoing[0])


def erase_unused(graph: fx.Graph, candidates: Iterable[fx.Node]) -> None:
    """Erase those of some nodes that nothing reads, the last ones first."""
    erasable = set(candidates)
    for node in reversed(list(graph.nodes)):
        if node in erasable and not node.users:
            graph.erase_node(node)
