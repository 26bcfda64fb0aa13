"""Says where the kernels written in Triton serve, and imports them when they first do."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch

_INT32_ELEMENTS = 2**31 - 2**20  # so that the last block's places fit too


@cache
def triton_version(name: str, device: torch.device) -> ModuleType | None:
    """What `<name>_triton.py` offers for tensors of a GPU; None where plain torch serves."""
    if device.type != "cuda" or not works(device):
        return None
    return import_module(f".{name}_triton", __package__)


@cache
def works(device: torch.device) -> bool:
    """Whether Triton is installed and its kernels run on a GPU: tried once, with a small one."""
    if find_spec("triton") is None:
        return False
    try:
        bits = import_module(".bits_triton", __package__)
        packed = bits.pack(torch.arange(99, device=device) % 3 == 0)
        if packed.tolist() == [73, 146, 36] * 4 + [1]:
            return True
        reason = f"it packed {packed.tolist()}"
    except Exception as error:  # a driver, a compiler, a processor too old: each raises an error of its own kind
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"Triton is installed but does not work on {device}, so that kernels in plain torch serve there, which are "
        f"slower and take more memory while they run ({reason})",
        RuntimeWarning,
        stacklevel=3,
    )
    return False


def needs_int64(count: int) -> bool:
    """Whether places among so many elements have to be computed in 64 bits."""
    return count > _INT32_ELEMENTS


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Runs that many programs of a kernel on a device's current stream; constants are compiled in."""
    if not programs:
        return
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[(programs,)](*arguments, **constants)
