"""Refuse calls that take a tensor's data out of torch, which a captured step cannot follow."""

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
    """A mode that refuses calls which need data that fake tensors lack, and guards each number that forward reads.

    A number used as a truth value is first compared with zero, so that only the truth value is guarded.

    where: describes the module and line that are running.
    replacements: wrappers by the id of the real tensor, for code that reaches it without its module (a closure).
    """

    def __init__(self, where: Callable[[], str], replacements: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self.where = where
        self.replacements = replacements

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = self._replace(args)
        kwargs = {name: self._replace(value) for name, value in kwargs.items()} if kwargs else {}
        if func in _TAKE_DATA_OUT:
            if _makes_nested():
                raise CaptureError(f"forward makes a nested tensor, {self.where()}: {NESTED}")
            raise CaptureError(
                f"forward calls {func.__name__}, which takes data out of torch, {self.where()}: the result would stay "
                "the one of the sample at every step; compute it with torch, or keep it out of the rewritten module"
            )
        if func is torch.Tensor.tolist:
            return _as_list(args[0])
        if func in _DECISIONS and args[0].numel() == 1 and args[0].dtype != torch.bool:
            return bool(args[0] != 0)  # only the decision is guarded, not the number
        if func in (torch.equal, torch.Tensor.equal):
            return args[0].shape == args[1].shape and bool((args[0] == args[1]).all())
        return func(*args, **kwargs)

    def _replace(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.replacements.get(id(value), value)
        if type(value) in (tuple, list):
            return type(value)(self._replace(part) for part in value)
        return value


def _makes_nested() -> bool:
    """Return whether torch accesses memory because it makes a nested tensor."""
    return any("nested" in Path(frame.filename).parts for frame in traceback.extract_stack(limit=12))


def _as_list(tensor: torch.Tensor) -> Any:
    return tensor.item() if tensor.dim() == 0 else [_as_list(part) for part in tensor.unbind(0)]
