"""Watches for calls that take a tensor's data out of torch, which a captured step cannot follow."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ...errors import CaptureError
from ..capture_failures import NESTED

_TAKE_DATA_OUT = (
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.data_ptr,
    torch.Tensor.__dlpack__,
    torch.Tensor.untyped_storage,
    torch.Tensor.storage,
)

_DECISIONS = (torch.Tensor.__bool__, torch.Tensor.is_nonzero, torch.is_nonzero)


class RealDataRefused(TorchFunctionMode):
    """Refuses calls that want memory that is not there, and takes lists apart so that each number is guarded; a number
    taken for a truth value is compared with zero first, so that only this is.

    where: says which module and line are running. instead: by the id of a real tensor what stands for it, should code
    reach it otherwise than through its module (a function that closes over a parameter).
    """

    def __init__(self, where: Callable[[], str], instead: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self.where = where
        self.instead = instead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = self._exchanged(args)
        kwargs = {name: self._exchanged(value) for name, value in kwargs.items()} if kwargs else {}
        if func in _TAKE_DATA_OUT:
            if _makes_nested():
                raise CaptureError(f"forward makes a nested tensor, {self.where()}: {NESTED}")
            raise CaptureError(
                f"forward calls {func.__name__}, which takes data out of torch, {self.where()}: what is computed there "
                "would stay as it was for the sample; compute it with torch, or keep it out of the rewritten module"
            )
        if func is torch.Tensor.tolist:
            return _listed(args[0])
        if func in _DECISIONS and args[0].numel() == 1 and args[0].dtype != torch.bool:
            return bool(args[0] != 0)  # a decision, and no number
        if func in (torch.equal, torch.Tensor.equal):
            return args[0].shape == args[1].shape and bool((args[0] == args[1]).all())
        return func(*args, **kwargs)

    def _exchanged(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.instead.get(id(value), value)
        if type(value) in (tuple, list):
            return type(value)(self._exchanged(part) for part in value)
        return value


def _makes_nested() -> bool:
    """Whether torch asks for memory because it makes a nested tensor."""
    return any("nested" in Path(frame.filename).parts for frame in traceback.extract_stack(limit=12))


def _listed(tensor: torch.Tensor) -> Any:
    return tensor.item() if tensor.dim() == 0 else [_listed(part) for part in tensor.unbind(0)]
