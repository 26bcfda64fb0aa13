"""Runs a linear layer and the cross-entropy of its result in chunks of rows, so that logits never exist as a whole."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ...kernels.loss.linear_cross_entropy import linear_cross_entropy
from ..backward_regions import erase_unused, nodes_of_backward
from ..graph_pass import GraphPass, rewrite_calls
from ..step_graph import storage_key
from .cross_entropy_patterns import VIEWS, CrossEntropy, match_cross_entropy

aten = torch.ops.aten
_HIDDEN, _WEIGHT, _BIAS = 1, 2, 4  # gradients to compute


@dataclass(frozen=True)
class ChunkCrossEntropy(GraphPass):
    """Replaces a linear layer, log-softmax and negative log-likelihood by one operation that also makes the gradients.

    before: logits = aten.mm.default(hidden, weight); logs = aten._log_softmax.default(logits, 1, False);
            loss = aten.nll_loss_forward.default(logs, target, None, 1, -100)
    after:  loss, hidden_gradient, weight_gradient, bias_gradient = lowtide.linear_cross_entropy.default(...)

    Backward multiplies the gradients by the incoming one. It also replaces smoothed losses, and those that are summed
    after weighing their rows (`cross_entropy_patterns`). It applies only where nothing else reads the logits: pass
    outputs=["loss"] where the model returns them.
    """

    name: ClassVar[str] = "chunked_cross_entropy"
    fidelity: ClassVar[str] = "rounding"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        return rewrite_calls(graph, {aten.nll_loss_forward.default: _chunk})


def _chunk(node: fx.Node) -> None:
    loss = match_cross_entropy(node)
    match = _match_chunkable_loss(node, loss) if loss is not None else None
    if match is not None:
        _replace(node.graph, match)


@dataclass(frozen=True)
class _ChunkableLoss:
    """A linear layer under a cross-entropy.

    gradients: by operand, the nodes of backward that make its gradient.
    incoming: the gradient of the loss.
    nodes: all nodes that are erased if nothing else reads them.
    """

    loss: CrossEntropy
    product: fx.Node
    hidden: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    dtype: torch.dtype | None
    nodes: frozenset[fx.Node]
    incoming: fx.Node
    gradients: dict[int, fx.Node]


def _match_chunkable_loss(node: fx.Node, loss: CrossEntropy) -> _ChunkableLoss | None:
    """Return the linear layer whose results go into a cross-entropy and nowhere else.

    node: the negative log-likelihood.
    """
    head = _head(loss.logs)
    if head is None:
        return None
    product, bias, dtype, layer = head
    chain = [*loss.chain, *layer]
    hidden, weight = product.args[-2:]
    known = {hidden, weight, bias, loss.target, loss.class_weight, loss.row_weight, *loss.auxiliary, *chain}
    backward = _backward(node, chain, known)
    if backward is None:
        return None
    nodes, incoming, gradients = backward
    within = nodes | set(chain)
    if any(user not in within for node in chain if node is not loss.result for user in node.users):
        return None
    nodes = frozenset((*within, *loss.auxiliary))
    return _ChunkableLoss(loss, product, hidden, weight, bias, dtype, nodes, incoming, gradients)


def _head(logs: fx.Node) -> tuple[Any, fx.Node | None, torch.dtype | None, list[fx.Node]] | None:
    """Return the product that makes logits, its bias, the dtype they are cast to, and all nodes from there to `logs`.

    None if they are made differently. A bias may be added to the product afterwards, as BART does.
    """
    layer, product, dtype, added = [logs], logs.args[0], None, None
    while isinstance(product, fx.Node) and product.target in (*VIEWS, aten._to_copy.default, aten.add.Tensor):
        layer.append(product)
        if product.target is aten._to_copy.default:
            if dtype is not None:
                return None
            dtype = product.meta["val"].dtype
        elif product.target is aten.add.Tensor:
            rows, vector = product.args
            if added is not None or product.kwargs or not _is_bias(vector, rows):
                return None
            added = vector
        product = product.args[0]
    if not isinstance(product, fx.Node) or product.target not in (aten.mm.default, aten.addmm.default):
        return None
    if product.kwargs or logs.meta["val"].shape != product.meta["val"].shape or (added and len(product.args) == 3):
        return None
    bias = product.args[0] if len(product.args) == 3 else added
    return product, bias, dtype, [*layer, product]  # pyright: ignore[reportReturnType]


def _is_bias(vector: Any, rows: Any) -> bool:
    """Return whether one of two summands holds an element for each class of the other, in the same dtype."""
    if not isinstance(vector, fx.Node) or not isinstance(rows, fx.Node):
        return False
    bias_value, rows_value = vector.meta["val"], rows.meta["val"]
    return (
        bias_value.dtype == rows_value.dtype
        and bias_value.numel() == bias_value.shape[-1] == rows_value.shape[-1]
        and bias_value.numel() > 0
    )


def _backward(
    loss: fx.Node, chain: list[fx.Node], known: set[Any]
) -> tuple[set[fx.Node], fx.Node, dict[int, fx.Node]] | None:
    """Return all nodes of backward, the incoming gradient, and those that make gradients; None if there are others.

    known: nodes that backward may read of forward.
    """
    in_order = nodes_of_backward(loss.graph, [node for node in chain if node.target is not operator.getitem])
    nodes = set(in_order)
    losses = [node for node in nodes if node.target is aten.nll_loss_backward.default]
    incoming = {read for node in nodes for read in node.all_input_nodes} - nodes - known
    if len(losses) != 1 or len(incoming) != 1:
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
    return nodes, incoming.pop(), gradients


def _is_turned(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target in (aten.t.default, aten.transpose.int)


def _follows(node: Any, made: set[fx.Node]) -> bool:
    """Return whether a node is a view of a gradient."""
    while node not in made:
        if not isinstance(node, fx.Node) or (not _is_turned(node) and node.target not in VIEWS):
            return False
        node = node.args[0]
    return True


def _replace(graph: fx.Graph, match: _ChunkableLoss) -> None:
    results = _operation(graph, match)
    loss, incoming = results[0], match.incoming
    if match.loss.rows > 1:  # a mean over rows
        with graph.inserting_before(match.loss.result):
            loss = _called(graph, aten.div.Scalar, (loss, match.loss.rows), loss.meta)
        with graph.inserting_before(next(iter(match.gradients.values()))):
            meta = next(iter(match.gradients.values())).meta
            incoming = _called(graph, aten.div.Scalar, (incoming, match.loss.rows), meta)
    match.loss.result.replace_all_uses_with(loss)
    for kind, old in match.gradients.items():
        unit = results[kind.bit_length()]
        with graph.inserting_before(old):
            new = _called(graph, aten.mul.Tensor, (unit, incoming), old.meta)
            if kind == _BIAS:  # the sum over rows kept the dimension
                new = _called(graph, aten.view.default, (new, list(old.meta["val"].shape)), old.meta)
            elif kind == _WEIGHT and old.meta["val"].shape != unit.meta["val"].shape:
                new = _called(graph, aten.t.default, (new,), old.meta)
        old.replace_all_uses_with(new)
        _view_again(new, old)
    erase_unused(graph, match.nodes)


def _view_again(new: fx.Node, old: fx.Node) -> None:
    """Give the views of a replaced node values that view the new one, so that all lie in one storage again."""
    key = storage_key(old.meta["val"])
    for user in new.users:
        value = user.meta.get("val")  # the output has none
        if isinstance(value, torch.Tensor) and storage_key(value) == key:
            args = (arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in user.args)
            user.meta["val"] = user.target(*args, **user.kwargs)  # pyright: ignore[reportCallIssue]
            _view_again(user, old)


def _operation(graph: fx.Graph, match: _ChunkableLoss) -> list[fx.Node]:
    """Return the new operation's four results."""
    loss, meta = match.loss, match.product.meta
    with graph.inserting_before(loss.result):
        bias = match.bias
        if bias is not None and bias.meta["val"].dim() != 1:
            bias = _called(graph, aten.reshape.default, (bias, [-1]), meta)
        more = () if loss.row_weight is None else (loss.row_weight,)
        if loss.row_weight is not None and loss.row_weight.meta["val"].dim() != 1:
            more = (_called(graph, aten.reshape.default, (loss.row_weight, [-1]), meta),)
        turned = _called(graph, aten.t.default, (match.weight,), meta)
        operands = match.hidden, turned, bias, loss.target, loss.class_weight
        options = loss.reduction, loss.ignored, loss.smoothing, match.dtype, sum(match.gradients)
        call = _called(graph, linear_cross_entropy, (*operands, *options, *more), meta)
        parts = range(len(call.meta["val"]))
        return [_called(graph, operator.getitem, (call, part), meta) for part in parts]


def _called(graph: fx.Graph, target: Any, args: tuple[Any, ...], meta: dict[str, Any]) -> fx.Node:
    """Return a call, run on its operands' values without data; meta: of the node that it replaces."""
    node = graph.call_function(target, args)
    value = target(*(arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args))
    node.meta = {**meta, "val": value}
    return node
