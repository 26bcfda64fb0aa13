"""A captured step, and the guard that says which calls it serves."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...passes.calls import inputs_of
from ...passes.joint_graph import JointGraph, evaluated
from ...passes.sources import Source
from ..errors import CaptureError
from .boundary.outputs import Outputs
from .call.module_attributes import Settings


@dataclass(frozen=True)
class Guard:
    """Values the module looked at. `graph` computes them from inputs, buffers and constants; `values` are those of the
    sample. constants: the tensors among `sources` that no call brings."""

    graph: JointGraph
    sources: tuple[Source, ...]
    values: tuple[Any, ...]
    constants: Mapping[Source, torch.Tensor]

    def holds(self, tensors: Mapping[Source, torch.Tensor]) -> bool:
        """Whether the module would see the same values in these tensors."""
        known = {**tensors, **self.constants}
        with torch.no_grad():
            seen = evaluated(self.graph.graph, *(known[source] for source in self.sources))
        return tuple(looked_at(value) for value in seen) == self.values


@dataclass(frozen=True)
class Captured:
    """A captured step.

    graph: joint graph; each placeholder's `meta["source"]` is a `Source`, each call's `meta` holds `val` (fake
        tensors), `phase` ("forward" or "backward"), `sequence` (autograd's number) and `module`. The output is
        (outputs, gradients, mutations), three tuples of nodes.
    outputs: what the step gives, and which of it (by number) has a tangent (`expected`) or may have one (`able`).
    gradients / mutations: for each such output of the graph, the source it belongs to.
    reachable: parameters and inputs that some output's gradient may reach, whether it is expected or not.
    constants: tensors that the module holds without registering them, in the order of their sources.
    guard, settings: what other calls must agree in: values the module looked at, and attributes it read.
    undo: what the tensors that every check in forward holds would restore: a source, or None for the generator.
    rereads: whether results depend on what a buffer or input held that forward changes.
    checkpoints: how many of forward's own checkpoints (`torch.utils.checkpoint`) were made plain calls.
    """

    graph: fx.GraphModule
    outputs: Outputs
    gradients: tuple[Source, ...]
    mutations: tuple[Source, ...]
    reachable: tuple[Source, ...]
    constants: tuple[torch.Tensor, ...]
    guard: Guard | None
    settings: Settings
    undo: tuple[Source | None, ...]
    rereads: bool
    notes: tuple[str, ...]
    checkpoints: int = 0

    @property
    def held(self) -> dict[Source, torch.Tensor]:
        """The constants by source."""
        return {Source("constant", str(i), i): constant for i, constant in enumerate(self.constants)}


def looked_at(value: Any) -> Any:
    """What the program depends on: a number itself, of a tensor only its shape."""
    if isinstance(value, (list, tuple)):
        return tuple(looked_at(part) for part in value)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


def depends_on_changed(graph: fx.Graph, mutations: Iterable[Source]) -> bool:
    """Whether an output or gradient of a joint graph is computed from what a changed buffer or input held before."""
    changed = set(mutations)
    stale = {n for n in graph.nodes if n.op == "placeholder" and n.meta["source"] in changed}
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    results, gradients, _ = output.args[0]
    for node in graph.nodes:
        if node.op != "call_function" or not any(before in stale for before in node.all_input_nodes):
            continue
        # Batch normalization in training computes nothing but its new statistics from the old ones.
        if "batch_norm" in str(node.target):
            stale |= {user for user in node.users if user.args[1] not in (0, 1, 2)}
        elif not (node.target is operator.getitem and "batch_norm" in str(node.args[0].target)):
            stale.add(node)
    return any(node in stale for node in (*results, *gradients))


def check_former_values(graph: fx.Graph, changed: set[Source]) -> None:
    """Raises CaptureError if backward reads what a changed buffer held before: it is overwritten by then."""
    storages = {
        node.meta["val"].untyped_storage()._cdata: node.meta["source"]
        for node in graph.nodes
        if node.op == "placeholder" and node.meta["source"] in changed
    }
    for node in graph.nodes:
        # Batch normalization is handed its running statistics in backward too, and in training does not read them.
        if node.op != "call_function" or node.meta["phase"] == "forward" or _is_batch_norm(node):
            continue
        for read in node.all_input_nodes:
            value = read.meta["val"]
            source = storages.get(value.untyped_storage()._cdata) if isinstance(value, torch.Tensor) else None
            if source is not None:
                place = node.meta["module"] or "the step"
                raise CaptureError(
                    f"forward changes {source.kind} {source.name}, and the backward of {place} needs what it held "
                    "before; compute with a copy of it (.clone()), or change it first"
                )


def _is_batch_norm(node: fx.Node) -> bool:
    return getattr(node.target, "namespace", None) == "aten" and "batch_norm" in str(node.target)


def guard_of(
    reads: Iterable[tuple[fx.Node, Any]], changed: set[str], constants: Sequence[torch.Tensor]
) -> Guard | None:
    """A graph of its own that computes again what the module looked at; None where it looked at nothing that varies.

    changed: names of buffers that forward changes: a decision may depend on them, a number may not.
    """
    reads = [(node, value) for node, value in reads if _varies(node)]
    if not reads:
        return None
    for node, value in reads:
        stale = [] if isinstance(value, bool) else [n for n in _sources_of(node) if n.name in changed]
        if stale:
            raise CaptureError(
                f"the module computes with the number that {stale[0].name} holds, which every forward changes: each "
                "step would be another program; compute with the tensor instead of `.item()`, or update it outside of "
                "forward"
            )
    needed = {n for node, _ in reads for n in inputs_of(node)}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    sources = []
    for node in reads[0][0].graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            if node.op == "placeholder":
                sources.append(node.meta["source"])
    graph.output(tuple(copies[node] for node, _ in reads))
    values = tuple(value for _, value in reads)
    held = {source: constants[source.index] for source in sources if source.kind == "constant"}
    return Guard(JointGraph(graph), tuple(sources), values, held)


def _sources_of(node: fx.Node) -> list[Source]:
    return [n.meta["source"] for n in inputs_of(node) if n.op == "placeholder"]


def _varies(node: fx.Node) -> bool:
    """Whether a value depends on anything that another call may bring; a held constant may be changed in place."""
    return any(n.op == "placeholder" and not n.meta.get("lifted", False) for n in inputs_of(node))
