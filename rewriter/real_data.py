"""Watches for calls that take a tensor's data out of torch, which a captured step cannot follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .errors import CaptureError

_TAKE_DATA_OUT = (
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.data_ptr,
    torch.Tensor.__dlpack__,
    torch.Tensor.untyped_storage,
    torch.Tensor.storage,
)


class RealDataRefused(TorchFunctionMode):
    """Refuses calls that want memory that is not there, and takes lists apart so that each number is guarded.

    where: says which module and line are running.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where = where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TAKE_DATA_OUT:
            raise CaptureError(
                f"forward calls {func.__name__}, which takes data out of torch, {self.where()}: what is computed there "
                "would stay as it was for the sample; compute it with torch, or keep it out of the rewritten module"
            )
        if func is torch.Tensor.tolist:
            return _listed(args[0])
        return func(*args, **(kwargs or {}))


def _listed(tensor: torch.Tensor) -> Any:
    return tensor.item() if tensor.dim() == 0 else [_listed(part) for part in tensor.unbind(0)]
