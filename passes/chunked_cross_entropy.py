"""Runs a linear layer and the cross-entropy of its result in chunks of rows, so that logits never exist as a whole."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..kernels.linear_cross_entropy import linear_cross_entropy
from .regions import erase_unused, nodes_of_backward

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.alias.default, aten.reshape.default)
_HIDDEN, _WEIGHT, _BIAS = 1, 2, 4  # gradients to compute


@dataclass(frozen=True)
class ChunkCrossEntropy:
    """Replaces a linear layer, log-softmax and negative log-likelihood by one operation that also makes the gradients.

    before: logits = aten.mm.default(hidden, weight); logs = aten._log_softmax.default(logits, 1, False);
            loss = aten.nll_loss_forward.default(logs, target, None, 1, -100)
    after:  loss, hidden_gradient, weight_gradient, bias_gradient = lowtide.linear_cross_entropy.default(...)

    Backward multiplies the gradients by the incoming one. Only where nothing else reads the logits: pass
    outputs=["loss"] where the model returns them.
    """

    name: str = "chunked_cross_entropy"
    fidelity: str = "rounding"

    def __call__(self, graph: fx.GraphModule) -> fx.GraphModule:
        for node in list(graph.graph.nodes):
            if node.target is aten.nll_loss_forward.default:
                found = _found(node)
                if found is not None:
                    _replace(graph.graph, node, found)
        graph.graph.lint()
        return graph


@dataclass(frozen=True)
class _Found:
    """A linear layer under a cross-entropy. gradients: by what they belong to, the nodes of backward that make them."""

    product: fx.Node
    hidden: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    dtype: torch.dtype | None
    nodes: frozenset[fx.Node]
    incoming: fx.Node
    gradients: dict[int, fx.Node]


def _found(loss: fx.Node) -> _Found | None:
    logs = loss.args[0]
    assert isinstance(logs, fx.Node)
    if logs.target is not aten._log_softmax.default or logs.args[1] not in (1, -1):
        return None
    forward, product, dtype = [loss, *loss.users, logs], logs.args[0], None
    while isinstance(product, fx.Node) and product.target in (*_VIEWS, aten._to_copy.default):
        if product.target is aten._to_copy.default:
            dtype = product.meta["val"].dtype
        forward.append(product)
        product = product.args[0]
    if not isinstance(product, fx.Node) or product.target not in (aten.mm.default, aten.addmm.default):
        return None
    forward.append(product)
    bias, hidden, weight = product.args if len(product.args) == 3 else (None, *product.args)
    backward = _backward(forward, hidden, weight)
    if backward is None or product.kwargs:
        return None
    nodes, incoming, gradients = backward
    within = nodes | set(forward)
    returned = next((user for user in loss.users if user.args[1] == 0), None)
    if any(user not in within for node in forward if node is not returned for user in node.users):
        return None
    rows = product.meta["val"].shape
    if logs.meta["val"].shape != rows or loss.args[3] not in (1, 2):
        return None
    return _Found(product, hidden, weight, bias, dtype, frozenset(within), incoming, gradients)  # pyright: ignore


def _backward(
    forward: list[fx.Node], hidden: Any, weight: Any
) -> tuple[set[fx.Node], fx.Node, dict[int, fx.Node]] | None:
    """(all nodes of backward, the incoming gradient, those that make gradients); None if there is anything else."""
    own = set(forward)
    in_order = nodes_of_backward(hidden.graph, [node for node in forward if node.target is not operator.getitem])
    nodes = set(in_order)
    read = {read for node in nodes for read in node.all_input_nodes}
    losses = [node for node in nodes if node.target is aten.nll_loss_backward.default]
    if len(losses) != 1:
        return None
    incoming = losses[0].args[0]
    known = {hidden, weight, incoming, losses[0].args[2], losses[0].args[3]}
    if not isinstance(incoming, fx.Node) or read - nodes - own - known:
        return None
    gradients: dict[int, fx.Node] = {}
    carried = {losses[0]}
    for node in in_order:
        if not carried & set(node.all_input_nodes):
            continue
        if node.target is aten.mm.default:
            gradients[_HIDDEN if node.args[0] in carried and not _is_turned(node.args[0]) else _WEIGHT] = node
        elif node.target is aten.sum.dim_IntList:
            gradients[_BIAS] = node
        else:
            carried.add(node)
    outgoing = {node for node in nodes if any(user not in nodes for user in node.users)}
    made = set(gradients.values())
    if any(node not in made and not _follows(node, made) for node in outgoing):
        return None
    return nodes, incoming, gradients


def _is_turned(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in (aten.t.default, aten.transpose.int)


def _follows(node: fx.Node, made: set[fx.Node]) -> bool:
    """Whether a node is a view of a gradient."""
    while node not in made:
        if not _is_turned(node) and node.target not in _VIEWS:
            return False
        node = node.args[0]  # pyright: ignore[reportAssignmentType]
    return True


def _replace(graph: fx.Graph, loss: fx.Node, found: _Found) -> None:
    _, target, class_weight, reduction, ignored = loss.args
    results = _operation(graph, loss, found, (target, class_weight, reduction, ignored))
    for user in list(loss.users):
        if user.args[1] == 0:
            user.replace_all_uses_with(results[0])
    for kind, old in found.gradients.items():
        unit = results[kind.bit_length()]
        with graph.inserting_before(old):
            new = graph.call_function(aten.mul.Tensor, (unit, found.incoming))
            new.meta = dict(old.meta)
            if kind == _BIAS:  # a sum over rows that kept the dimension
                new.meta["val"] = unit.meta["val"].new_empty(unit.meta["val"].shape)
                kept = graph.call_function(aten.view.default, (new, list(old.meta["val"].shape)))
                kept.meta = {**old.meta, "val": new.meta["val"].view(old.meta["val"].shape)}
                new = kept
            elif kind == _WEIGHT and old.meta["val"].shape != unit.meta["val"].shape:
                new.meta["val"] = unit.meta["val"].new_empty(unit.meta["val"].shape)
                turned = graph.call_function(aten.t.default, (new,))
                turned.meta = {**old.meta, "val": new.meta["val"].t()}
                new = turned
        old.replace_all_uses_with(new)
    erase_unused(graph, found.nodes)


def _operation(graph: fx.Graph, loss: fx.Node, found: _Found, told: tuple[Any, ...]) -> list[fx.Node]:
    """The new operation's four results."""
    target, class_weight, reduction, ignored = told
    wanted = sum(found.gradients)
    with graph.inserting_before(loss):
        turned = graph.call_function(aten.t.default, (found.weight,))
        turned.meta = {**found.product.meta, "val": found.weight.meta["val"].t()}
        args = (found.hidden, turned, found.bias, target, class_weight, reduction, ignored, 0.0, found.dtype, wanted)
        call = graph.call_function(linear_cross_entropy, args)
        value = linear_cross_entropy(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in args))
        call.meta = {**found.product.meta, "val": value}
        results = []
        for index, part in enumerate(value):
            item = graph.call_function(operator.getitem, (call, index))
            item.meta = {**call.meta, "val": part}
            results.append(item)
    return results
