"""Decompose operations as eager does on plain tensors, where ATen would decompose them differently while recording."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ....kernels.eager.selected_weights import selected_weights_sum
from ..torch_internals import cross_entropy_loss

aten = torch.ops.aten
_REDUCTIONS = ("none", "mean", "sum")  # as ATen numbers them


class EagerComposites(TorchFunctionMode):
    """A mode that decomposes functions as on plain tensors if their decomposition depends on the kind of tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.cross_entropy:
            return _cross_entropy(*args, **kwargs)
        if func is cross_entropy_loss:
            return _cross_entropy_loss(*args, **kwargs)
        return func(*args, **kwargs)


def _cross_entropy_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    return _cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=_REDUCTIONS[reduction],
        label_smoothing=label_smoothing,
    )


def _cross_entropy(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Compute `functional.cross_entropy`: a smoothed, weighted mean in parts, any other case unchanged."""
    legacy = size_average is not None or reduce is not None
    options: dict[str, Any] = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
    options |= {"size_average": size_average, "reduce": reduce} if legacy else {"reduction": reduction}
    is_mean = size_average is not False and reduce is not False if legacy else reduction == "mean"
    is_sharp = weight is None or weight.requires_grad or not 0 < label_smoothing <= 1
    if is_sharp or not is_mean or input.shape == target.shape:
        return functional.cross_entropy(input, target, weight, **options)
    device = input.device.type
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return _smoothed(_single(input), target, _single(weight), ignore_index, label_smoothing)  # pyright: ignore
    return _smoothed(input, target, weight, ignore_index, label_smoothing)  # pyright: ignore


def _single(tensor: torch.Tensor) -> torch.Tensor:
    """Cast to single precision as autocast does."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _smoothed(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, ignored: int, smoothing: float
) -> torch.Tensor:
    """Compute the mean like `cross_entropy_loss_label_smoothing` of ATen/native/LossNLL.cpp on plain tensors."""
    class_dim = 0 if input.dim() == 1 else 1
    logs = torch.log_softmax(input, class_dim, input.dtype)
    sharp = functional.nll_loss(logs, target, weight, ignore_index=ignored)
    shape = [1] * logs.dim()
    shape[class_dim] = weight.shape[0]
    smooth = -(logs * weight.view(shape)).sum(class_dim)
    smooth.masked_fill_(target == ignored, 0.0)
    mean = smooth.sum() / selected_weights_sum(weight, target, ignored)
    # multiplied by numbers, as in C++: `passes/cross_entropy_forms.py` searches for these calls
    return aten.mul.Scalar(sharp, 1 - smoothing) + aten.mul.Scalar(mean, smoothing / logs.shape[class_dim])
