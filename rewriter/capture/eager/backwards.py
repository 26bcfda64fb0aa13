"""Compute gradients as eager does, for operations whose backward ATen computes differently while recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ....kernels.eager.eager_gradients import (
    cumprod_gradient,
    filled_value_gradient,
    operation_gradient,
    prod_gradient,
    vector_norm_gradient,
    whole_gradient,
)
from ..autograd_graph import nodes_behind

Formula = Callable[[Any, torch.Tensor], torch.Tensor | None]  # None: what the node has computed stays


def take_eager_branches(outputs: Iterable[torch.Tensor]) -> None:
    """Replace the gradients of some autograd nodes by those of eager's own backward on plain tensors.

    ATen reads data in these formulas (is any factor zero?), but not if tensors are recorded or are subclasses: then it
    uses a formula for any data, with different bits. The calls recorded by the nodes themselves are unused afterwards.

    Other formulas end with a step that works in place only on plain tensors. Recorded, they give gradients of another
    layout, over which sums round differently; here the operation runs again on plain tensors.
    """
    for node in nodes_behind(*outputs):
        known = _FORMULAS.get(node.name())
        if known is not None:
            node.register_hook(_instead(node, *known))
        elif node.name() in _OPERATIONS:
            node.register_hook(_from_rerun(node, *_OPERATIONS[node.name()](node)))


def _instead(node: Any, place: int, formula: Formula) -> Callable[..., Any]:
    """Return a hook that replaces one of the gradients that a node has computed."""

    def hook(computed: tuple[Any, ...], incoming: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if computed[place] is None or incoming[0] is None:
            return None
        gradient = formula(node, incoming[0])
        return None if gradient is None else (*computed[:place], gradient, *computed[place + 1 :])

    return hook


def _from_rerun(node: Any, operation: str, operands: list[torch.Tensor]) -> Callable[..., Any]:
    """Return a hook that gives the gradients of eager's own backward where their layout may differ."""
    elementwise = not operation.startswith(_DIFFERENT_IN_ANY_LAYOUT)

    def hook(computed: tuple[Any, ...], incoming: tuple[Any, ...]) -> tuple[Any, ...] | None:
        gradient = incoming[0]
        if gradient is None or (elementwise and all(tensor.is_contiguous() for tensor in (gradient, *operands))):
            return None
        places = [place for place in range(len(operands)) if place < len(computed) and computed[place] is not None]
        rerun = {place: operation_gradient(gradient, operands, operation, places, place) for place in places}
        return tuple(rerun.get(place, own) for place, own in enumerate(computed))

    return hook


def _saved(node: Any, *names: str) -> list[torch.Tensor]:
    return [getattr(node, f"_saved_{name}").detach() for name in names]


def _clamped(node: Any) -> tuple[str, list[torch.Tensor]]:
    if node._saved_min is None:
        return "clamp from above", _saved(node, "self", "max")
    if node._saved_max is None:
        return "clamp from below", _saved(node, "self", "min")
    return "clamp", _saved(node, "self", "min", "max")


def _reflected(node: Any) -> tuple[str, list[torch.Tensor]]:
    name = "ormqr" + " from the right" * (not node._saved_left) + " transposed" * node._saved_transpose
    return name, _saved(node, "self", "input2", "input3")


_DIFFERENT_IN_ANY_LAYOUT = ("householder_product", "ormqr")

# By the name of a node: the operation to run again, and its operands.
_OPERATIONS: dict[str, Callable[[Any], tuple[str, list[torch.Tensor]]]] = {
    "MaximumBackward0": lambda node: ("maximum", _saved(node, "self", "other")),
    "MinimumBackward0": lambda node: ("minimum", _saved(node, "self", "other")),
    "FmaxBackward0": lambda node: ("fmax", _saved(node, "self", "other")),
    "FminBackward0": lambda node: ("fmin", _saved(node, "self", "other")),
    "ClampBackward0": _clamped,
    "ClampMinBackward1": lambda node: ("clamp_min", _saved(node, "self", "min")),
    "ClampMaxBackward1": lambda node: ("clamp_max", _saved(node, "self", "max")),
    "MaskedSelectBackward0": lambda node: ("masked_select", _saved(node, "self", "mask")),
    "LinalgHouseholderProductBackward0": lambda node: ("householder_product", _saved(node, "input", "tau")),
    "OrmqrBackward0": _reflected,
}


def _whole(kind: str) -> Formula:
    return lambda node, gradient: whole_gradient(gradient, node._saved_self.detach(), kind)


def _norm_over(order: str) -> Formula:
    """Return the formula of a norm; order: the name of its attribute. Only that of the 2-norm ends in place."""

    def formula(node: Any, gradient: torch.Tensor) -> torch.Tensor | None:
        x, p = node._saved_self.detach(), float(getattr(node, order))
        if p != 2 or x.is_contiguous():
            return None
        dim = None if node._saved_dim is None else [_signed(number) for number in node._saved_dim]
        return vector_norm_gradient(gradient, x, p, dim, node._saved_keepdim)

    return formula


def _prod_over(node: Any, gradient: torch.Tensor) -> torch.Tensor:
    return prod_gradient(gradient, node._saved_self.detach(), _signed(node._saved_dim), node._saved_keepdim)


def _signed(dim: int) -> int:
    """Return a dimension as it was given: nodes store a negative one modulo 2^64."""
    return dim - 2**64 if dim >= 2**63 else dim


# For each name of a node, the place of the gradient that is replaced, and its formula.
_FORMULAS: dict[str, tuple[int, Formula]] = {
    "ProdBackward0": (0, lambda node, gradient: prod_gradient(gradient, node._saved_self.detach(), None, False)),
    "ProdBackward1": (0, _prod_over),
    "CumprodBackward0": (
        0,
        lambda node, gradient: cumprod_gradient(gradient, node._saved_self.detach(), _signed(node._saved_dim)),
    ),
    "LinalgVectorNormBackward0": (0, _norm_over("_saved_ord")),
    "NormBackward1": (0, _norm_over("_saved_p")),
    "MaxBackward1": (0, _whole("max")),
    "MinBackward1": (0, _whole("min")),
    "MedianBackward0": (0, _whole("median")),
    "NanmedianBackward0": (0, _whole("nanmedian")),
    "MaskedFillBackward1": (1, lambda node, gradient: filled_value_gradient(gradient, node._saved_mask)),
}
