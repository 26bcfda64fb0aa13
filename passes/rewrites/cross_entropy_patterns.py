"""Recognizes a cross-entropy in a graph: torch's own, with smoothing, or summed up after weighing its rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ...kernels.eager.selected_weights import selected_weights_sum
from ..backward_regions import forward_users

aten = torch.ops.aten
VIEWS = (aten.view.default, aten._unsafe_view.default, aten.alias.default, aten.reshape.default)
_NONE, _MEAN, _SUM = 0, 1, 2  # reductions, as ATen numbers them


@dataclass(frozen=True)
class CrossEntropy:
    """A cross-entropy of logarithms of softmax `logs` [N, V], reduced to one number.

    result: that number, by itself or times `rows`.
    chain: the nodes that autograd differentiates, from `logs` to `result`.
    auxiliary: the nodes made of targets and weights on the way.
    reduction, smoothing, row_weight: as `linear_cross_entropy` takes them.
    rows: the divisor of the sum over rows, 1 where there is none.
    """

    logs: fx.Node
    target: fx.Node
    class_weight: fx.Node | None
    ignored: int
    result: fx.Node
    chain: tuple[fx.Node, ...]
    auxiliary: tuple[fx.Node, ...] = ()
    reduction: int = _MEAN
    smoothing: float = 0.0
    row_weight: fx.Node | None = None
    rows: int = 1


def match_cross_entropy(loss: fx.Node) -> CrossEntropy | None:
    """Return the cross-entropy that a negative log-likelihood (`aten.nll_loss_forward`) belongs to, None if there is
    none.
    """
    arguments: tuple[Any, ...] = loss.args
    logs, target, class_weight, reduction, ignored = arguments
    result = next((user for user in loss.users if user.args[1] == 0), None)
    if logs.target is not aten._log_softmax.default or logs.args[1] not in (1, -1) or result is None:
        return None
    cross_entropy = CrossEntropy(logs, target, class_weight, ignored, result, (loss, *loss.users), reduction=reduction)
    others = [user for user in forward_users(logs) if user is not loss]
    if others:
        return _smoothed(cross_entropy, others[0]) if len(others) == 1 and reduction != _NONE else None
    return _summed(cross_entropy) if reduction == _NONE else cross_entropy


def _smoothed(plain: CrossEntropy, first: fx.Node) -> CrossEntropy | None:
    """Return (1 - s) loss + s / V sum(-w log p) / count, as `cross_entropy_loss` of ATen/native/LossNLL.cpp writes it.

    first: the other reader of log p.
    """
    weighing = [aten.mul.Tensor] if plain.class_weight is not None else []
    dividing = [aten.div.Tensor] if plain.reduction == _MEAN else []
    summing = [aten.sum.dim_IntList, aten.neg.default, aten.masked_fill.Scalar, aten.sum.default]
    chain = _followed(first, [*weighing, *summing, *dividing, aten.mul.Scalar, aten.add.Tensor])
    if chain is None:
        return None
    by_target = {node.target: node for node in chain}
    scaled, result = by_target[aten.mul.Scalar], by_target[aten.add.Tensor]
    auxiliary = _auxiliary_nodes(plain, by_target)
    sharp: Any = next((node for node in result.all_input_nodes if node is not scaled), None)
    if auxiliary is None or sharp is None or sharp.target is not aten.mul.Scalar or sharp.args[0] is not plain.result:
        return None
    factor: Any = scaled.args[1]
    smoothing = factor * plain.logs.meta["val"].shape[1]
    if not math.isclose(sharp.args[1], 1 - smoothing, abs_tol=1e-9) or not 0 <= smoothing <= 1:
        return None
    return replace(plain, result=result, chain=(*plain.chain, *chain, sharp), auxiliary=auxiliary, smoothing=smoothing)


def _auxiliary_nodes(plain: CrossEntropy, by_target: dict[Any, fx.Node]) -> tuple[fx.Node, ...] | None:
    """Return the nodes that a smoothed loss makes of targets and weights; None if they are unexpected."""
    mask: Any = by_target[aten.masked_fill.Scalar].args[1]
    ignoring = mask.target is aten.eq.Scalar and mask.args == (plain.target, plain.ignored)
    if (
        not ignoring
        or by_target[aten.masked_fill.Scalar].args[2] != 0
        or by_target[aten.sum.dim_IntList].args[1:] != ([1],)
    ):
        return None
    auxiliary = [mask]
    if plain.class_weight is not None:
        view: Any = by_target[aten.mul.Tensor].args[1]
        if view.target not in VIEWS or view.args[0] is not plain.class_weight:
            return None
        auxiliary.append(view)
    if plain.reduction == _MEAN:
        count = _count(plain, mask, by_target[aten.div.Tensor].args[1])
        if count is None:
            return None
        auxiliary += count
    return tuple(auxiliary)


def _count(plain: CrossEntropy, mask: fx.Node, count: Any) -> tuple[fx.Node, ...] | None:
    """Return the nodes that make the weight of all rows not ignored, by which a mean divides; None if `count` is
    another.
    """
    if _operand(count, selected_weights_sum, plain.target, plain.ignored) is plain.class_weight is not None:
        return (count,)
    summed: Any = _operand(count, aten.sum.default)
    if plain.class_weight is None:
        return (count, summed) if summed is not None and _operand(summed, aten.bitwise_not.default) is mask else None
    picked: Any = _operand(summed, aten.masked_fill.Scalar, mask, 0)
    if picked is None or picked.target is not aten.gather.default or picked.args[0] is not plain.class_weight:
        return None
    at = picked.args[2]
    return (count, summed, picked, at) if _operand(at, aten.masked_fill.Scalar, mask, 0) is plain.target else None


def _operand(node: Any, target: Any, *others: Any) -> Any:
    """Return the first operand of a call to `target` whose other arguments are these; None if it is another call."""
    fits = isinstance(node, fx.Node) and node.target is target and node.args[1:] == others
    return node.args[0] if fits else None


def _summed(unreduced: CrossEntropy) -> CrossEntropy | None:
    """Return the sum or mean over rows of an unreduced loss, which may be multiplied by factors of its shape before."""
    chain, last, row_weight = list(unreduced.chain), unreduced.result, None
    while (following := _next(last)) is not None:
        chain.append(following)
        if following.target is aten.mul.Tensor and row_weight is None:
            row_weight = next((n for n in following.all_input_nodes if n is not last), None)
            if row_weight is None or row_weight.meta["val"].shape != last.meta["val"].shape:
                return None
        elif following.target in (aten.sum.default, aten.mean.default) and not following.kwargs:
            rows = last.meta["val"].numel() if following.target is aten.mean.default else 1
            if following.meta["val"].dtype != unreduced.logs.meta["val"].dtype or rows == 0:
                return None
            changes: dict[str, Any] = {"result": following, "chain": tuple(chain), "reduction": _SUM}
            return replace(unreduced, **changes, row_weight=row_weight, rows=rows)
        elif following.target not in VIEWS:
            return None
        last = following
    return None


def _followed(first: fx.Node, targets: list[Any]) -> list[fx.Node] | None:
    """Return a call and those after it, each the only one of forward that reads the one before; None if they are
    others.
    """
    chain: list[fx.Node] = []
    for target in targets:
        node = _next(chain[-1]) if chain else first
        if node is None or node.target is not target or node.kwargs:
            return None
        chain.append(node)
    return chain


def _next(node: fx.Node) -> fx.Node | None:
    """Return the only call of forward that reads a node, None if there are others or none."""
    users = forward_users(node)
    return users[0] if len(users) == 1 else None
