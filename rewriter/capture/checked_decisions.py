"""Add to a captured graph checks of decisions that are known only while a step runs, and copies to undo the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from ...kernels.checks import check, generator_state, state_bytes
from ...passes.calls import is_random
from ...passes.sources import Source
from ...passes.step_graph import updated_buffers

aten = torch.ops.aten


def add_checks(
    graph: fx.Graph, decided: Sequence[tuple[fx.Node, bool]], mutations: Mapping[Source, fx.Node]
) -> tuple[Source | None, ...]:
    """Add a check after each decision (a truth value and the expected one), and copies of the changed tensors.

    mutations: the new values of buffers and inputs that forward changes.
    Returns the sources of the copies, None for the default generator. The copies are kept until the last check; they
    undo the step if a decision differs.
    """
    if not decided:
        return ()
    undo = _copies(graph, mutations)
    for node, expected in dict(decided).items():
        with graph.inserting_after(_last_of(node)):
            added = graph.call_function(check, ([node], [expected], list(undo.values())))
        meta = node.meta if node.op == "call_function" else _first_call(graph).meta
        added.meta.update(val=None, phase="forward", sequence=meta["sequence"], module=meta["module"])
    return tuple(undo)


def _copies(graph: fx.Graph, mutations: Mapping[Source, fx.Node]) -> dict[Source | None, fx.Node]:
    """Insert copies, before all other calls, of the tensors and the generator state that forward changes."""
    calls = [node for node in graph.nodes if node.op == "call_function"]
    changed = {
        node.meta["source"]: node
        for node in graph.nodes
        if node.op == "placeholder" and node.meta["source"] in mutations
    }
    changed |= {node.meta["source"]: node for call in calls for node in updated_buffers(call)}
    drawn = [node for node in calls if is_random(node)]
    first = calls[0]
    copies: dict[Source | None, fx.Node] = {}
    with graph.inserting_before(first):
        if drawn:
            device = drawn[0].meta["val"].device
            copies[None] = graph.call_function(generator_state, (device,))
            blank = next(node.meta["val"] for node in graph.nodes if isinstance(node.meta.get("val"), torch.Tensor))
            copies[None].meta["val"] = blank.new_empty((state_bytes(device),), dtype=torch.uint8, device="cpu")
        for source, node in changed.items():
            copies[source] = graph.call_function(aten.clone.default, (node,))
            copies[source].meta["val"] = torch.empty_like(node.meta["val"])
    for copy in copies.values():
        copy.meta.update(phase="forward", sequence=first.meta["sequence"], module="")
    return copies


def _last_of(node: fx.Node) -> fx.Node:
    """Return the node after which a call that reads a node may stand: the last placeholder, or the node itself."""
    if node.op != "placeholder":
        return node
    return next(n for n in reversed(list(node.graph.nodes)) if n.op == "placeholder")


def _first_call(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op == "call_function")
