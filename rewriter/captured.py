"""A captured step, and the guard that says which calls it serves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from .calls import inputs_of
from .errors import CaptureError
from .settings import Settings
from .sources import Source
from .structure import Structure


@dataclass(frozen=True)
class Guard:
    """Values the module looked at. `graph` computes them from inputs and buffers; `values` are those of the sample."""

    graph: fx.GraphModule
    sources: tuple[Source, ...]
    values: tuple[Any, ...]

    def holds(self, tensors: Mapping[Source, torch.Tensor]) -> bool:
        """Whether the module would see the same values in these tensors."""
        with torch.no_grad():
            seen = self.graph(*(tensors[source] for source in self.sources))
        return tuple(looked_at(value) for value in seen) == self.values


@dataclass(frozen=True)
class Captured:
    """A captured step.

    graph: joint graph; each placeholder's `meta["source"]` is a `Source`, each call's `meta` holds `val` (fake
        tensors), `phase` ("forward" or "backward"), `sequence` (autograd's number) and `module`. The output is
        (outputs, gradients, mutations), three tuples of nodes.
    outputs: the structure of what forward returns; differentiable: which outputs (by number) have a tangent.
    gradients / mutations: for each such output of the graph, the source it belongs to.
    constants: tensors that the module holds without registering them, in the order of their sources.
    guard, settings: what other calls must agree in: values the module looked at, and attributes it read.
    checkpoints: how many of forward's own checkpoints (`torch.utils.checkpoint`) were made plain calls.
    """

    graph: fx.GraphModule
    outputs: Structure
    differentiable: tuple[int, ...]
    gradients: tuple[Source, ...]
    mutations: tuple[Source, ...]
    constants: tuple[torch.Tensor, ...]
    guard: Guard | None
    settings: Settings
    notes: tuple[str, ...]
    checkpoints: int = 0


class NothingToDifferentiate(CaptureError):
    """No output of the step requires a gradient: there is no backward to make room for.

    settings: the attributes that the forward read to come to this.
    """

    settings: Settings | None = None


def looked_at(value: Any) -> Any:
    """What the program depends on: a number itself, of a tensor only its shape."""
    if isinstance(value, (list, tuple)):
        return tuple(looked_at(part) for part in value)
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


def check_former_values(graph: fx.Graph, changed: set[Source]) -> None:
    """Raises CaptureError if backward reads what a changed buffer held before: it is overwritten by then."""
    storages = {
        node.meta["val"].untyped_storage()._cdata: node.meta["source"]
        for node in graph.nodes
        if node.op == "placeholder" and node.meta["source"] in changed
    }
    for node in graph.nodes:
        # Batch normalization is handed its running statistics in backward too, and in training does not read them.
        if node.op != "call_function" or node.meta["phase"] == "forward" or "batch_norm" in str(node.target):
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


def guard_of(reads: Iterable[tuple[fx.Node, Any]], changed: set[str]) -> Guard | None:
    """A graph of its own that computes again what the module looked at; None where it looked at nothing that varies."""
    reads = [(node, value) for node, value in reads if _varies(node)]
    if not reads:
        return None
    needed = {n for node, _ in reads for n in inputs_of(node)}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    sources = []
    for node in reads[0][0].graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            if node.op == "placeholder":
                sources.append(node.meta["source"])
    stale = [source.name for source in sources if source.name in changed]
    if stale:
        raise CaptureError(
            f"the module decides by the value of {stale[0]}, which every forward changes: each step would be another "
            "program (a BatchNorm with momentum=None, for one; give it a momentum)"
        )
    graph.output(tuple(copies[node] for node, _ in reads))
    values = tuple(value for _, value in reads)
    return Guard(fx.GraphModule(torch.nn.Module(), graph), tuple(sources), values)


def _varies(node: fx.Node) -> bool:
    """Whether a value depends on anything that another call may bring."""
    return any(n.op == "placeholder" and n.meta["source"].kind in ("input", "buffer") for n in inputs_of(node))
