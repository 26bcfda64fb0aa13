"""Checks that a kernel's operand lies in memory as planned, and copies it where it does not."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


class LayoutWarning(UserWarning):
    """A tensor's layout in memory differs from the planned one: results stay right, but bytes and time were not
    planned.
    """


def laid_out(x: Tensor, stride: list[int] | None) -> Tensor:
    """Return x if it lies as planned, or else a copy that does, with a `LayoutWarning`.

    stride: the planned one, None if there is no plan. Codes and masks have no shape of their own: their elements are
    in the memory order of the tensor that they belong to. In another order they would be applied to the wrong elements.
    Strides of dimensions of size 1 do not matter.
    """
    if stride is None or list(x.stride()) == stride:
        return x
    places = zip(x.shape, x.stride(), stride, strict=True)
    if all(size == 1 or here == planned for size, here, planned in places) or not x.numel():
        return x
    warnings.warn(
        f"a tensor of shape {tuple(x.shape)} has strides {x.stride()} where the plan expects {tuple(stride)}: it is "
        f"copied, which takes {x.numel() * x.element_size()} bytes more than planned; gradients are right",
        LayoutWarning,
        stacklevel=2,
    )
    return torch.empty_strided(x.shape, stride, dtype=x.dtype, device=x.device).copy_(x)
