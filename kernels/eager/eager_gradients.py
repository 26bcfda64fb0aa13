"""Eager's gradients on plain tensors, for operations whose backward is computed by another formula while it is
recorded.

ATen's formulas for these look at data (whether anything is zero, whether a value is NaN), but not while tensors are
recorded. There they use a formula that is right for any data, and rounds differently or takes longer. Each kernel here
runs the operation again on plain tensors and then eager's own backward. So its bits are those of eager in every release
of torch. Cost: a second run of the operation.
"""

from __future__ import annotations

from collections.abc import Callable

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


def _filled_value(gradient: Tensor, mask: Tensor) -> Tensor:
    with torch.enable_grad():
        value = gradient.new_zeros((), requires_grad=True)
        filled = torch.masked_fill(gradient.detach(), mask, value)
    return torch.autograd.grad(filled, value, gradient)[0]


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
