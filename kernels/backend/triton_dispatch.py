"""Says where the kernels written in Triton serve, and imports them when they first do."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch


@cache
def triton_version(module: str, device: torch.device) -> ModuleType | None:
    """What a module's twin in Triton, `<module>_triton`, offers for tensors of a GPU; None where plain torch serves."""
    if device.type != "cuda" or not works(device):
        return None
    return import_module(f"{module}_triton")


@cache
def works(device: torch.device) -> bool:
    """Whether Triton is installed and its kernels run on a GPU: tried once, with a small one."""
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
        f"Triton is installed but does not work on {device}, so that kernels in plain torch serve there, which are "
        f"slower and take more memory while they run ({reason})",
        RuntimeWarning,
        stacklevel=3,
    )
    return False
