"""Which kernels multiply: matrices, convolutions, attention."""

from __future__ import annotations

from torch import fx

from .calls import operation_name
from .step_graph import Kernel

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
    """Whether a kernel multiplies matrices, convolves or attends: what selective checkpointing keeps."""
    return kernel.role == "compute" and any(multiplies(call) for call in kernel.calls)


def multiplies(call: fx.Node) -> bool:
    """Whether a call multiplies matrices, convolves or attends."""
    name = operation_name(call)
    return "softmax" not in name and any(word in name for word in _INTENSIVE)
