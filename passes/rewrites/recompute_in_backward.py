"""Makes backward recompute, from values that it reads anyway, other values that it would otherwise read from forward.

Where backward reads noisy values (few-bit codes) this keeps fewer of them: a gated unit's gate and value, instead of
these two, the activated gate and the product. The planner cannot do that by itself. Recomputed forward must not read
decoded values of an approximate code, since the effect of that noise is not measured. Backward may, and there it is
measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx
from torch.fx.node import map_arg

from ..calls import is_random
from ..compute_intensive import multiplies
from ..encodings.comparisons import is_comparison
from ..graph_pass import GraphPass
from ..joint_graph import joint_outputs
from ..step_graph import is_compute, storage_key


@dataclass(frozen=True)
class RecomputeInBackward(GraphPass):
    """Makes backward recompute the calls of `find_recomputable`.

    before: s = aten.silu.default(gate); y = aten.mul.Tensor(s, up); ...
            weight' = aten.mm.default(gᵀ, y); up' = aten.mul.Tensor(g, s); h = aten.mul.Tensor(g, up);
            gate' = aten.silu_backward.default(h, gate)
    after:  s = aten.silu.default(gate); y = aten.mul.Tensor(s, up); ...
            s2 = aten.silu.default(gate); y2 = aten.mul.Tensor(s2, up); weight' = aten.mm.default(gᵀ, y2);
            up' = aten.mul.Tensor(g, s2); h = aten.mul.Tensor(g, up); gate' = aten.silu_backward.default(h, gate)
    """

    name: ClassVar[str] = "recompute_in_backward"
    fidelity: ClassVar[str] = "approximate"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        chosen = find_recomputable(graph)
        if not chosen:
            return False
        copies = _Copies(chosen)
        for node in [node for node in graph.graph.nodes if _is_in(node, "backward")]:
            for read in node.all_input_nodes:
                node.replace_input_with(read, copies.of_backward(read, node))
            copies.see(node)
        graph.graph.lint()
        return True


def find_recomputable(graph: fx.GraphModule) -> frozenset[fx.Node]:
    """Return calls of forward whose result backward reads, and all of whose operands made by forward it reads, too.

    Excluded are products, and calls that draw random numbers, compare with thresholds, write, return several tensors or
    read values that forward changes.
    """
    nodes = graph.graph.nodes
    changed = joint_outputs(graph)[2]
    needed = _storages(read for node in nodes if _is_in(node, "backward") for read in node.all_input_nodes)
    made = _storages(node for node in nodes if _is_in(node, "forward") and is_compute(node))
    placeholders = [node for node in nodes if node.op == "placeholder"]
    given = _storages(node for node in placeholders if node.meta["source"] not in changed)
    stale = _storages(node for node in placeholders if node.meta["source"] in changed)
    returned = _storages(next(n for n in reversed(nodes) if n.op == "output").all_input_nodes)

    def is_recomputable(node: fx.Node) -> bool:
        own, read = storage_key(node.meta["val"]), _storages(node.all_input_nodes)
        has_all = bool(read & made) and read <= needed | given
        return own in needed - read - given - stale - returned and has_all and _is_cheap(node)

    forward = [node for node in nodes if _is_in(node, "forward") and is_compute(node)]
    return frozenset(node for node in forward if _fills_its_storage(node.meta["val"]) and is_recomputable(node))


def _is_cheap(node: fx.Node) -> bool:
    """Return whether a call may be recomputed at little cost, and on noisy values."""
    written = not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable
    return not (written or is_random(node) or multiplies(node) or is_comparison(node))


class _Copies:
    """Copies of calls of forward in backward, each before its first reader."""

    def __init__(self, chosen: frozenset[fx.Node]) -> None:
        self.chosen, self.storages = chosen, _storages(chosen)
        self.copies: dict[fx.Node, fx.Node] = {}

    def of_backward(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        """Return the node that a node of backward reads in place of another: its copy, if its storage is recomputed."""
        value = node.meta.get("val")
        lies_there = isinstance(value, torch.Tensor) and storage_key(value) in self.storages
        if not (_is_in(node, "forward") and lies_there):
            return node
        if node not in self.copies:
            self.copies[node] = self._copy(node, reader)
        return self.copies[node]

    def _copy(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        operands = {read: self.of_backward(read, reader) for read in node.all_input_nodes}
        with node.graph.inserting_before(reader):
            copy = node.graph.node_copy(node, operands.__getitem__)
        value = node.meta["val"]
        value = value.new_empty_strided(value.shape, value.stride()) if node in self.chosen else _value_of(copy)
        copy.meta = {**node.meta, "val": value, "phase": "backward", "sequence": reader.meta["sequence"]}
        return copy

    def see(self, node: fx.Node) -> None:
        """Give a view that backward takes the storage of its copied operand."""
        value = node.meta["val"]
        if isinstance(value, torch.Tensor) and storage_key(value) in self.storages:
            node.meta["val"] = _value_of(node)


def _value_of(node: fx.Node) -> torch.Tensor:
    """Return a view of its operands' values, without data."""
    assert callable(node.target)
    args, kwargs = map_arg((node.args, node.kwargs), lambda read: read.meta["val"])
    return node.target(*args, **kwargs)


def _is_in(node: fx.Node, phase: str) -> bool:
    return node.op == "call_function" and node.meta["phase"] == phase


def _storages(nodes: Iterable[fx.Node]) -> set[int]:
    values = (node.meta.get("val") for node in nodes)
    return {storage_key(value) for value in values if isinstance(value, torch.Tensor)}


def _fills_its_storage(value: object) -> bool:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    return value.numel() * value.element_size() == value.untyped_storage().nbytes() > 0
