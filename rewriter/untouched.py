"""Watches which parameters and buffers forward replaces by other tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import CaptureError


@contextmanager
def held_tensors_untouched(model: torch.nn.Module) -> Iterator[dict[torch.Tensor, torch.Tensor]]:
    """Tells what forward replaced buffers by (old tensor → new one), when it has ended, and puts them back.

    Raises CaptureError for a replacement that is no new value of the same buffer.
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
    finally:
        for _, module, buffers, parameters in before:
            for held, now in ((buffers, module._buffers), (parameters, module._parameters)):
                now.clear()
                now.update(held)  # pyright: ignore


def _checked(old: torch.Tensor | None, new: torch.Tensor | None, place: str) -> torch.Tensor:
    """The old tensor, when the new one can be written into it."""
    if old is None or new is None or (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device):
        raise CaptureError(
            f"forward puts another tensor in the place of {place} (shape, dtype or device differ, or one is None): "
            "each step would be another program; set it outside of forward"
        )
    if old.requires_grad or new.requires_grad:
        raise CaptureError(
            f"forward puts a tensor that requires a gradient in the place of {place}, so that one step's backward "
            "would reach into the step before; detach it"
        )
    return old
