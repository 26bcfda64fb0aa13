"""Correct the layouts of results for which fake kernels differ from the real kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ..torch_internals import suggested_format

aten = torch.ops.aten


def is_blank(node: Any) -> bool:
    """Return whether a node makes an uninitialized tensor, which only an in-place operation can use."""
    return isinstance(node, fx.Node) and node.target in (aten.empty_like.default, aten.empty.memory_format)


def as_eager_makes_it(func: Any, args: tuple, out: Any) -> Any:
    """Return the fake result of a call with the layout and storage of the real kernel's result."""
    if func in _COPIES_THE_WHOLE and out.stride() == args[0].stride():
        return _with_storage_like(args[0])
    if func in _MEANS_IN_PLACE and out.dim() == 0:
        # The storage stays as large as all terms take.
        terms = torch.empty(torch.broadcast_shapes(args[0].shape, args[1].shape), dtype=out.dtype, device=out.device)
        return terms.as_strided((), ())
    if func is aten._embedding_bag.default and out[1].numel():
        # The kernel allocates one element more, then slices.
        rows = torch.empty(out[1].numel() + 1, dtype=out[1].dtype, device=out[1].device)
        return (out[0], rows[:-1], *out[2:])
    if func is aten._fused_moving_avg_obs_fq_helper_functional.default:
        return _observed(args, out)
    if func in _LAID_OUT_LIKE and out[0] is not None:
        out = (_made_for(args[_LAID_OUT_LIKE[func]], out[0].dtype), *out[1:])
    if func in _NORMALIZATIONS and _is_mixed(args):
        normalized, *statistics = out
        return (normalized, *(statistic.float() for statistic in statistics))
    if func is aten.native_group_norm_backward.default and _is_mixed(args) and out[0] is not None:
        return (out[0].to(args[1].dtype), *out[1:])
    if func in _POINTWISE_BACKWARDS:
        first, second = _POINTWISE_BACKWARDS[func]
        return torch.empty_like(args[first] * args[second], dtype=out.dtype)
    if func is aten.native_layer_norm_backward.default and out[0] is not None and out[0].device.type == "cpu":
        return (torch.empty_like(out[0], memory_format=torch.contiguous_format), *out[1:])
    if func in _CONTIGUOUS_BACKWARDS:
        return torch.empty_like(out, memory_format=torch.contiguous_format)
    return out


def _observed(args: tuple, out: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Return the results of an observer of ranges, with one range for each channel if it is per channel."""
    x, *others = args
    axis, per_channel = (*others, None, None)[9:11] if len(others) > 10 else (0, False)
    if not per_channel:
        return out
    return (*out[:2], *(state.new_empty((x.shape[axis],)) for state in args[3:7]))


def _made_for(images: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the result of a normalization on the CPU: channels last if its operand is, else contiguous."""
    if images.device.type != "cpu":
        return torch.empty_like(images, dtype=dtype)
    return torch.empty_like(images, dtype=dtype, memory_format=suggested_format(images))


def _is_mixed(args: tuple) -> bool:
    """Return whether a normalization in half precision on the CPU has parameters or statistics in single precision."""
    first, *others = (argument for argument in args if isinstance(argument, torch.Tensor))
    half = first.device.type == "cpu" and first.dtype in (torch.bfloat16, torch.float16)
    return half and any(other.dtype == torch.float32 for other in others)


# Their statistics are then in single precision too, which the fake kernels ignore.
_NORMALIZATIONS = (
    aten.native_layer_norm.default,
    aten.native_group_norm.default,
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit_functional.default,
)

# The place of the operand whose layout the results of normalizations of images have. The fake kernels use the layout of
# the gradient, or keep any order.
_LAID_OUT_LIKE = {
    aten.native_batch_norm.default: 0,
    aten._native_batch_norm_legit_functional.default: 0,
    aten.native_batch_norm_backward.default: 1,
    aten.native_group_norm_backward.default: 1,
}

# Losses that write out all terms and their mean over the first of them.
_MEANS_IN_PLACE = (
    aten.mse_loss.default,
    aten.smooth_l1_loss.default,
    aten.binary_cross_entropy.default,
    aten.soft_margin_loss.default,
)

# The places of the two factors, in the order in which the kernel reads them, of derivatives times the incoming
# gradient. The result has the layout of their product, which the fake kernels miss if the factors' layouts differ.
_POINTWISE_BACKWARDS = {
    aten.threshold_backward.default: (1, 0),
    aten.leaky_relu_backward.default: (1, 0),
    aten.rrelu_with_noise_backward.default: (1, 0),
    aten.hardtanh_backward.default: (0, 1),
    aten.elu_backward.default: (0, 5),
    aten.hardswish_backward.default: (0, 1),
    aten.hardsigmoid_backward.default: (0, 1),
    aten.softplus_backward.default: (0, 1),
    aten.logit_backward.default: (0, 1),
}

# These are contiguous for any operands.
_CONTIGUOUS_BACKWARDS = (aten.mse_loss_backward.default, aten.smooth_l1_loss_backward.default)

# Functionalized writes into views: each copies the whole storage of its operand.
_COPIES_THE_WHOLE = (
    aten.copy.default,
    aten.slice_scatter.default,
    aten.select_scatter.default,
    aten.diagonal_scatter.default,
    aten.as_strided_scatter.default,
)


def _with_storage_like(view: torch.Tensor) -> torch.Tensor:
    """Return a tensor like `view` in a new storage as large as the view's."""
    length = view.untyped_storage().nbytes() // view.element_size()
    whole = torch.empty(length, dtype=view.dtype, device=view.device)
    return whole.as_strided(view.shape, view.stride(), view.storage_offset())


def grouped_mm_result(
    left: torch.Tensor, right: torch.Tensor, offsets: torch.Tensor | None = None, *_: Any
) -> torch.Tensor:
    """Return the result of a grouped matrix product: eager on CPU takes any dtype, the fake kernel only bfloat16."""
    if left.dim() == 2 and right.dim() == 2 and offsets is not None:
        size = (offsets.size(0), left.size(0), right.size(1))
    elif left.dim() == right.dim():
        size = (left.size(0), left.size(1), right.size(-1))
    else:
        size = (left.size(-2), right.size(-1))
    return torch.empty(size, dtype=left.dtype, device=left.device)
