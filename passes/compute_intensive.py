"""Recognizes kernels that multiply matrices, convolve or attend."""

from __future__ import annotations

from torch import fx

from .calls import operation_name
from .step_kernels import ComputeKernel, Kernel

_INTENSIVE = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "matmul",
    "linear",
    "convolution",
    "attention",
    "grouped_mm",
    "conv",
)


def is_product(kernel: Kernel) -> bool:
    """Return whether a kernel multiplies matrices, convolves or attends: the kernels whose results selective
    checkpointing keeps.
    """
    return isinstance(kernel, ComputeKernel) and any(multiplies(call) for call in kernel.calls)


def multiplies(call: fx.Node) -> bool:
    """Return whether a call multiplies matrices, convolves or attends."""
    name = operation_name(call)
    return "softmax" not in name and any(word in name for word in _INTENSIVE)
