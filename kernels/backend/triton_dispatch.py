"""Decides where the kernels written in Triton are used, and imports them on first use."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch


@cache
def triton_version(module: str, device: torch.device) -> ModuleType | None:
    """Return a module's variant in Triton, `<module>_triton`, for tensors of a GPU; None where plain torch is used."""
    if device.type != "cuda" or not works(device):
        return None
    return import_module(f"{module}_triton")


@cache
def works(device: torch.device) -> bool:
    """Return whether Triton is installed and its kernels run on a GPU; a small kernel tries it once."""
    if find_spec("triton") is None:
        return False
    try:
        squares = import_module(".probe_triton", __package__).squares(torch.arange(9, device=device))
        if squares.tolist() == [n * n for n in range(9)]:
            return True
        reason = f"the squares of 0 to 8 came out as {squares.tolist()}"
    except Exception as error:  # a driver, a compiler, a processor too old: each raises an error of its own kind
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(
        f"Triton is installed but does not work on {device}: kernels in plain torch run there instead, "
        f"which are slower and take more memory ({reason})",
        RuntimeWarning,
        stacklevel=3,
    )
    return False
