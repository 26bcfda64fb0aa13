"""A captured step, and the guard that decides which calls it serves."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ...passes.calls import inputs_of
from ...passes.joint_graph import JointGraph, evaluate_graph, joint_outputs
from ...passes.sources import Source
from ..errors import CaptureError
from .boundary.outputs import Outputs
from .call.module_attributes import Settings


@dataclass(frozen=True)
class Guard:
    """Values that the module read during capture.

    graph: computes them from inputs, buffers and constants.
    sources: the placeholders of the graph, in order.
    values: the values for the sample.
    constants: the tensors among `sources` that are not part of a call.
    """

    graph: JointGraph
    sources: tuple[Source, ...]
    values: tuple[Any, ...]
    constants: Mapping[Source, torch.Tensor]

    def holds(self, tensors: Mapping[Source, torch.Tensor]) -> bool:
        """Return whether the module would read the same values from these tensors."""
        known = {**tensors, **self.constants}
        with torch.no_grad():
            seen = evaluate_graph(self.graph.graph, *(known[source] for source in self.sources))
        return tuple(observed_value(value) for value in seen) == self.values


@dataclass(frozen=True)
class CapturedStep:
    """A captured step.

    graph: joint graph; each placeholder's `meta["source"]` is a `Source`, each call's `meta` holds `val` (fake
        tensors), `phase` ("forward" or "backward"), `sequence` (autograd's number), `module` and `line` (`model.py:12`,
        if known). The output is (outputs, gradients, mutations), three tuples of nodes, with the sources of the last
        two in its `meta`.
    outputs: the outputs, and which of them (by number) have a tangent (`expected`) or may have one (`differentiable`).
    reachable: parameters and inputs that the gradient of some output may reach, expected or not.
    constants: tensors that the module holds without registering them, in the order of their sources.
    guard: the values that the module read, which must be the same in other calls.
    settings: the attributes that the module read, which must be the same in other calls.
    undo: for each tensor held by the checks in forward, the source that it restores, or None for the generator.
    rereads: whether results depend on the former value of a buffer or input that forward changes.
    checkpoints: how many of forward's own checkpoints (`torch.utils.checkpoint`) were made plain calls.
    """

    graph: fx.GraphModule
    outputs: Outputs
    reachable: tuple[Source, ...]
    constants: tuple[torch.Tensor, ...]
    guard: Guard | None
    settings: Settings
    undo: tuple[Source | None, ...]
    rereads: bool
    notes: tuple[str, ...]
    checkpoints: int = 0

    @property
    def gradients(self) -> tuple[Source, ...]:
        """The source of each gradient, in order."""
        return tuple(joint_outputs(self.graph)[1])

    @property
    def mutations(self) -> tuple[Source, ...]:
        """The sources of buffers and inputs that forward changes."""
        return tuple(joint_outputs(self.graph)[2])

    @property
    def held(self) -> dict[Source, torch.Tensor]:
        """The constants by source."""
        return {Source("constant", str(i), i): constant for i, constant in enumerate(self.constants)}


def observed_value(value: Any) -> Any:
    """Return the part of a value on which the program depends: a number itself, or the shape of a tensor."""
    if isinstance(value, (list, tuple)):
        return tuple(observed_value(part) for part in value)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


def depends_on_changed(graph: fx.Graph, mutations: Iterable[Source]) -> bool:
    """Return whether an output or gradient is computed from the former value of a changed buffer or input."""
    changed = set(mutations)
    stale = {n for n in graph.nodes if n.op == "placeholder" and n.meta["source"] in changed}
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    results, gradients, _ = output.args[0]
    for node in graph.nodes:
        if node.op != "call_function" or not any(before in stale for before in node.all_input_nodes):
            continue
        # Batch normalization in training computes only its new statistics from the old ones.
        if "batch_norm" in str(node.target):
            stale |= {user for user in node.users if user.args[1] not in (0, 1, 2)}
        elif not (node.target is operator.getitem and "batch_norm" in str(node.args[0].target)):
            stale.add(node)
    return any(node in stale for node in (*results, *gradients))


def check_former_values(graph: fx.Graph, changed: set[Source]) -> None:
    """Raise CaptureError if backward reads the former value of a changed buffer, which is overwritten by then."""
    storages = {
        node.meta["val"].untyped_storage()._cdata: node.meta["source"]
        for node in graph.nodes
        if node.op == "placeholder" and node.meta["source"] in changed
    }
    for node in graph.nodes:
        # Batch normalization receives its running statistics in backward too, but does not read them in training.
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


def place_backward(graph: fx.Graph) -> None:
    """Give each call of backward the module and the line of the forward call whose gradient it computes."""
    places: dict[int, dict[str, str]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.meta["phase"] == "forward":
            place = {"module": node.meta["module"], "line": node.meta.get("line", "")}
            places.setdefault(node.meta["sequence"], place)
    for node in graph.nodes:
        if node.op == "call_function" and node.meta["phase"] == "backward":
            node.meta.update(places.get(node.meta["sequence"], {"module": "", "line": ""}))


def _is_batch_norm(node: fx.Node) -> bool:
    return getattr(node.target, "namespace", None) == "aten" and "batch_norm" in str(node.target)


def guard_of(
    reads: Iterable[tuple[fx.Node, Any]], changed: set[str], constants: Sequence[torch.Tensor]
) -> Guard | None:
    """Return a guard that recomputes the values that the module read; None if none of them varies.

    changed: names of buffers that forward changes: a decision may depend on them, a number may not.
    Raises CaptureError for a number read from a changed buffer.
    """
    reads = [(node, value) for node, value in reads if _varies(node)]
    if not reads:
        return None
    for node, value in reads:
        stale = [] if isinstance(value, bool) else [n for n in _sources_of(node) if n.name in changed]
        if stale:
            raise CaptureError(
                f"the module computes with the number in {stale[0].name}, which every forward changes: each step would "
                "need a different program; compute with the tensor instead of `.item()`, or update it outside of "
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
    """Return the sources from which a value is computed, in the order of the step's placeholders."""
    seen = set(inputs_of(node))
    return [n.meta["source"] for n in node.graph.nodes if n.op == "placeholder" and n in seen]


def _varies(node: fx.Node) -> bool:
    """Return whether a value may differ in another call; a held constant may be changed in place."""
    return any(n.op == "placeholder" and not n.meta.get("lifted", False) for n in inputs_of(node))
