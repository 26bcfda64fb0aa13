"""Make modules that would detect the capture take the same path as in eager."""

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
def eager_paths(model: torch.nn.Module, averaging: Averaging, placeholders: Callable[[Any], Any]) -> Iterator[None]:
    """Replace the forward of some modules of `model` within this context.

    Batch normalization with momentum=None reads the number of batches in Python. Here it computes with an arbitrary
    number, under `averaging(count)`, which makes kernels read the tensor instead.
    Transformer encoders and multi-head attention have fused kernels for evaluation, which they do not use under a
    torch function mode. Here they run without modes, on arguments converted by `placeholders`.
    """
    replaced = []
    for module in model.modules():
        forward = _forward_of(module, averaging, placeholders)
        if forward is not None and "forward" not in vars(module):
            module.forward = forward
            replaced.append(module)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _forward_of(
    module: torch.nn.Module, averaging: Averaging, placeholders: Callable[[Any], Any]
) -> Callable[..., Any] | None:
    plain = type(module).forward
    if plain in (BatchNorm1d.forward, SyncBatchNorm.forward):
        return lambda *args, **kwargs: _normalized(module, plain, averaging, args, kwargs)
    if plain in _FUSED:
        return lambda *args, **kwargs: _fused_if_evaluating(module, plain, placeholders(args), placeholders(kwargs))
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
    # Parts of other classes may call functions that only a mode can intercept.
    inside = all(type(part).forward in _FUSED for part in getattr(module, "layers", ()))
    if module.training or not inside:
        return plain(module, *args, **kwargs)
    with no_function_modes():
        return plain(module, *args, **kwargs)
