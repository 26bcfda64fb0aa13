"""Which kernels multiply: matrices, convolutions, attention."""

from __future__ import annotations

from .call_signature import operation_name
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
    names = {operation_name(call) for call in kernel.calls if kernel.role == "compute"}
    return any(word in name for name in names for word in _INTENSIVE) and not any("softmax" in n for n in names)
