"""Eager's gradients on plain tensors, for operations whose backward is computed by another formula while it is
recorded.

ATen's formulas for these look at data (whether anything is zero, whether a value is NaN), but not while tensors are
recorded. There they use a formula that is right for any data, and rounds differently or takes longer. Each kernel here
runs the operation again on plain tensors and then eager's own backward. So its bits are those of eager in every release
of torch. Cost: a second run of the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backend.library import define


def _gradient(function: Callable[..., Tensor], x: Tensor, gradient: Tensor, *others: object) -> Tensor:
    """Return the gradient of x from that of function(x, *others)."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = function(leaf, *others)
    return torch.autograd.grad(result, leaf, gradient)[0]


def _prod(x: Tensor, dtype: torch.dtype, dim: int | None, keepdim: bool) -> Tensor:
    return torch.prod(x, dtype=dtype) if dim is None else torch.prod(x, dim, keepdim, dtype=dtype)


def _cumprod(x: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    return torch.cumprod(x, dim, dtype=dtype)


def _vector_norm(x: Tensor, dtype: torch.dtype, order: float, dim: list[int] | None, keepdim: bool) -> Tensor:
    return torch.linalg.vector_norm(x, order, dim, keepdim, dtype=dtype)


def _filled_value(gradient: Tensor, mask: Tensor) -> Tensor:
    with torch.enable_grad():
        value = gradient.new_zeros((), requires_grad=True)
        filled = torch.masked_fill(gradient.detach(), mask, value)
    return torch.autograd.grad(filled, value, gradient)[0]


# By name, what `operation_gradient` runs again. Their formulas write into what they make on plain tensors, so that it
# keeps its layout; recorded, they make another tensor, whose layout follows other operands.
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "clamp": torch.clamp,
    "clamp from below": lambda x, low: torch.clamp(x, min=low),
    "clamp from above": lambda x, high: torch.clamp(x, max=high),
    "clamp_min": torch.clamp_min,
    "clamp_max": torch.clamp_max,
    "masked_select": torch.masked_select,
    "householder_product": torch.linalg.householder_product,
    "ormqr": lambda a, tau, other: torch.ormqr(a, tau, other, left=True, transpose=False),
    "ormqr transposed": lambda a, tau, other: torch.ormqr(a, tau, other, left=True, transpose=True),
    "ormqr from the right": lambda a, tau, other: torch.ormqr(a, tau, other, left=False, transpose=False),
    "ormqr from the right transposed": lambda a, tau, other: torch.ormqr(a, tau, other, left=False, transpose=True),
}


def _operation_gradient(
    gradient: Tensor, operands: Sequence[Tensor], operation: str, places: Sequence[int], place: int
) -> Tensor:
    with torch.enable_grad():
        leaves = [operand.detach().requires_grad_(n in places) for n, operand in enumerate(operands)]
        result = OPERATIONS[operation](*leaves)
    return torch.autograd.grad(result, [leaves[n] for n in places], gradient)[places.index(place)]


_WHOLE = {"max": torch.max, "min": torch.min, "median": torch.median, "nanmedian": torch.nanmedian}


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x)


prod_gradient = define(
    "prod_gradient(Tensor gradient, Tensor x, int? dim, bool keepdim) -> Tensor",
    lambda gradient, x, dim, keepdim: _gradient(_prod, x, gradient, gradient.dtype, dim, keepdim),
    lambda gradient, x, dim, keepdim: _like(x),
)
"""The gradient of x from that of its product, over one dimension or, if that is None, all. It has the type of its
gradient.
"""

cumprod_gradient = define(
    "cumprod_gradient(Tensor gradient, Tensor x, int dim) -> Tensor",
    lambda gradient, x, dim: _gradient(_cumprod, x, gradient, gradient.dtype, dim),
    lambda gradient, x, dim: _like(x),
)
"""The gradient of x from that of its products up to each element along a dimension."""

whole_gradient = define(
    "whole_gradient(Tensor gradient, Tensor x, str kind) -> Tensor",
    lambda gradient, x, kind: _gradient(_WHOLE[kind], x, gradient),
    lambda gradient, x, kind: _like(x),
)
"""The gradient of x from that of its largest, smallest or middle element. kind: max, min, median or nanmedian."""

filled_value_gradient = define(
    "filled_value_gradient(Tensor gradient, Tensor mask) -> Tensor",
    _filled_value,
    lambda gradient, mask: gradient.new_empty(()),
)
"""The gradient of the value that masked_fill wrote, from that of its result."""

vector_norm_gradient = define(
    "vector_norm_gradient(Tensor gradient, Tensor x, float order, int[]? dim, bool keepdim) -> Tensor",
    lambda gradient, x, order, dim, keepdim: _gradient(_vector_norm, x, gradient, gradient.dtype, order, dim, keepdim),
    lambda gradient, x, order, dim, keepdim: _like(x),
)
"""The gradient of x from that of its norms along dimensions, or of all of it."""

operation_gradient = define(
    "operation_gradient(Tensor gradient, Tensor[] operands, str operation, int[] places, int place) -> Tensor",
    _operation_gradient,
    lambda gradient, operands, operation, places, place: _like(operands[place]),
)
"""The gradient of the operand `place`, from that of what one of `OPERATIONS` made of all operands.

places: of the operands that eager computes gradients of, on which formulas depend.
"""
