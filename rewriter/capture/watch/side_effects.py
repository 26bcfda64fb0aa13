"""Detect parameters and buffers that forward replaces by other tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...errors import CaptureError, Unsettled


@contextmanager
def held_tensors_untouched(model: torch.nn.Module) -> Iterator[dict[torch.Tensor, torch.Tensor]]:
    """Yield a dict of buffers that forward replaced (old tensor → new one), filled at its end, and restore them.

    Raises CaptureError for a replacement that is not a new value of the same buffer.
    Raises Unsettled if forward gives the module different tensors: another shape or dtype, or one in place of None.
    """
    before = [(name, module, dict(module._buffers), dict(module._parameters)) for name, module in model.named_modules()]
    replaced: dict[torch.Tensor, torch.Tensor] = {}
    try:
        yield replaced
        for prefix, module, buffers, parameters in before:
            for held, now in ((buffers, module._buffers), (parameters, module._parameters)):
                for name in [n for n in now if now[n] is not held.get(n)]:
                    place = f"{prefix}.{name}" if prefix else name
                    replaced[_checked(held.get(name), now[name], place)] = now[name]  # pyright: ignore[reportArgumentType]
    except Unsettled:
        raise
    except Exception as error:
        _refuse_growth(
            model, {id(module): {**buffers, **parameters} for _, module, buffers, parameters in before}, error
        )
        raise
    finally:
        for _, module, buffers, parameters in before:
            for held, now in ((buffers, module._buffers), (parameters, module._parameters)):
                now.clear()
                now.update(held)  # pyright: ignore


def _checked(old: torch.Tensor | None, new: torch.Tensor | None, place: str) -> torch.Tensor:
    """Return the old tensor if the new one can be written into it. Raises Unsettled, CaptureError."""
    if old is None or new is None or (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
        raise Unsettled(f"forward puts {_described(new)} in the place of {place}, which was {_described(old)}")
    if old.requires_grad or new.requires_grad:
        raise CaptureError(
            f"forward replaces {place} by a tensor that requires a gradient, so that one step's backward would reach "
            "into the previous step; detach it"
        )
    return old


def _refuse_growth(model: torch.nn.Module, before: dict[int, dict[str, Any]], error: Exception) -> None:
    """Raise Unsettled if the failed forward added parameters or buffers to its module."""
    for prefix, module in model.named_modules():
        held = before.get(id(module), {})
        now = {**module._buffers, **module._parameters}
        gained = [name for name, tensor in now.items() if tensor is not None and held.get(name) is None]
        if gained:
            place = f"{prefix}.{gained[0]}" if prefix else gained[0]
            raise Unsettled(f"forward gives the module {place}, which it did not have before") from error


def _described(tensor: torch.Tensor | None) -> str:
    return "None" if tensor is None else f"{tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}"


def held_by(model: torch.nn.Module) -> set[int]:
    """Return the ids of tensors that modules hold, registered or not, also in lists, tuples and dicts."""
    tensor_ids: set[int] = set()

    def look(value: Any, depth: int) -> None:
        if isinstance(value, torch.Tensor):
            tensor_ids.add(id(value))
        elif isinstance(value, (list, tuple, dict)) and depth:
            for part in value.values() if isinstance(value, dict) else value:
                look(part, depth - 1)

    for module in model.modules():
        look(vars(module), 4)
    return tensor_ids
