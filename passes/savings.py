"""The savings of passes: bytes that backward no longer reads from forward, by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from .graph_pass import GraphPass
from .joint_graph import copy_graph
from .step_graph import storage_key, tensors_of


@dataclass(frozen=True)
class Saving:
    """The bytes by which a pass lowers what backward reads of a module's forward; negative where it reads more."""

    name: str
    fidelity: str
    module: str
    saved_bytes: int


def apply_passes(graph: fx.GraphModule, passes: Iterable[GraphPass]) -> tuple[fx.GraphModule, tuple[Saving, ...]]:
    """Return a copy of a joint graph after some passes, and the savings of each."""
    graph = copy_graph(graph)
    savings: list[Saving] = []
    before = _kept_bytes(graph)
    for graph_pass in passes:
        if not graph_pass.rewrite(graph):
            continue
        after = _kept_bytes(graph)
        for module in dict.fromkeys((*before, *after)):
            if before[module] != after[module]:
                savings.append(Saving(graph_pass.name, graph_pass.fidelity, module, before[module] - after[module]))
        before = after
    return graph, tuple(savings)


def _kept_bytes(graph: fx.GraphModule) -> Counter[str]:
    """Return by module the bytes of the storages that its forward makes and backward reads."""
    made: dict[int, tuple[str, int]] = {}
    read: set[int] = set()
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node.meta["phase"] == "forward":
            for _, value in tensors_of(node):
                key = storage_key(value)
                made.setdefault(key, (node.meta["module"], value.untyped_storage().nbytes()))
        else:
            values = (operand.meta["val"] for operand in node.all_input_nodes)
            read |= {storage_key(value) for value in values if isinstance(value, torch.Tensor)}
    given = {
        storage_key(node.meta["val"])
        for node in graph.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta["val"], torch.Tensor)
    }
    kept: Counter[str] = Counter()
    for key, (module, size_bytes) in made.items():
        if key in read and key not in given:
            kept[module] += size_bytes
    return kept
