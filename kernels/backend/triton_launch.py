"""Starts kernels written in Triton, and says how wide their element numbers have to be."""

from __future__ import annotations

from typing import Any

import torch

_INT32_ELEMENTS = 2**31 - 2**20  # so that the last block's places fit too


def needs_int64(count: int) -> bool:
    """Return whether element numbers up to a count have to be computed in 64 bits."""
    return count > _INT32_ELEMENTS


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run a number of programs of a kernel on a device's current stream; constants are compiled in."""
    if not programs:
        return
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](*arguments, **constants)
