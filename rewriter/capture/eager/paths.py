"""Has modules take the path under capture that they take in eager, where they would see that they are captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.nn import BatchNorm1d, SyncBatchNorm

from ..torch_internals import no_function_modes

_ANY_MOMENTUM = 0.5

Averaging = Callable[[torch.Tensor], AbstractContextManager[Any]]


@contextmanager
def eager_paths(model: torch.nn.Module, averaging: Averaging, stand_ins: Callable[[Any], Any]) -> Iterator[None]:
    """A context in which these modules of `model` have another forward, of their own.

    Batch normalization with momentum=None reads in Python how many batches there were. Here it computes with any
    number, under `averaging(count)`, which has kernels take the tensor in the place of the number.
    Transformer encoders and multi-head attention have fused kernels for evaluation, which they do not use under a mode
    that sees functions of torch; none is seen while they run, so they are given what `stand_ins` makes of arguments.
    """
    replaced = []
    for module in model.modules():
        forward = _forward_of(module, averaging, stand_ins)
        if forward is not None and "forward" not in vars(module):
            module.forward = forward
            replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _forward_of(
    module: torch.nn.Module, averaging: Averaging, stand_ins: Callable[[Any], Any]
) -> Callable[..., Any] | None:
    plain = type(module).forward
    if plain in (BatchNorm1d.forward, SyncBatchNorm.forward):
        return lambda *args, **kwargs: _normalized(module, plain, averaging, args, kwargs)
    if plain in _FUSED:
        return lambda *args, **kwargs: _fused_if_evaluating(module, plain, stand_ins(args), stand_ins(kwargs))
    return None


_FUSED = tuple(
    cls.forward for cls in (torch.nn.MultiheadAttention, torch.nn.TransformerEncoderLayer, torch.nn.TransformerEncoder)
)


def _normalized(module: Any, plain: Callable[..., Any], averaging: Averaging, args: tuple, kwargs: dict) -> Any:
    counts = module.training and module.track_running_stats and module.num_batches_tracked is not None
    if module.momentum is not None or not counts or _is_distributed():
        return plain(module, *args, **kwargs)
    module.momentum = _ANY_MOMENTUM
    try:
        with averaging(module.num_batches_tracked):  # pyright: ignore[reportArgumentType]
            return plain(module, *args, **kwargs)
    finally:
        module.momentum = None


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _fused_if_evaluating(module: torch.nn.Module, plain: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
    # Parts of other classes may call what only a mode can see.
    inside = all(type(part).forward in _FUSED for part in getattr(module, "layers", ()))
    if module.training or not inside:
        return plain(module, *args, **kwargs)
    with no_function_modes():
        return plain(module, *args, **kwargs)
