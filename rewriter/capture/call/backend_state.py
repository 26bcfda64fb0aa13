"""List, in one place, the state of torch's backends on which the choice, time and scratch of kernels depend."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache

import torch
from torch.utils import deterministic

from ....kernels.backend import native
from ..torch_internals import default_device, kernel_switches, precision_getter

State = tuple[tuple[str, Hashable], ...]

_backends = torch.backends
_SMALLEST = 5e-324  # a denormal: where denormals are flushed to zero, twice it is 0

# Private switches are in `torch_internals.kernel_switches`. Each of these takes well below a microsecond.
_EVERYWHERE: dict[str, Callable[[], Hashable]] = {
    "threads": torch.get_num_threads,
    "default dtype": torch.get_default_dtype,
    "default device": default_device,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "deterministic, warning only": torch.is_deterministic_algorithms_warn_only_enabled,
    "deterministic, memory filled": lambda: deterministic.fill_uninitialized_memory,  # pyright: ignore
    "float32 precision": precision_getter("generic", "all"),
    "matmul precision": lambda: _legacy(torch.get_float32_matmul_precision),
    "flash attention": _backends.cuda.flash_sdp_enabled,
    "memory-efficient attention": _backends.cuda.mem_efficient_sdp_enabled,
    "plain attention": _backends.cuda.math_sdp_enabled,
    "cuDNN attention": _backends.cuda.cudnn_sdp_enabled,
    "plain attention in half precision": _backends.cuda.fp16_bf16_reduction_math_sdp_allowed,
    "fast path of nn.MultiheadAttention": _backends.mha.get_fastpath_enabled,
    "opt_einsum": lambda: _backends.opt_einsum.enabled and _backends.opt_einsum.strategy,
}
_ON_CPU: dict[str, Callable[[], Hashable]] = {
    "instructions": _backends.cpu.get_cpu_capability,
    "denormals flushed": lambda: _SMALLEST + _SMALLEST == 0.0,
    "oneDNN": lambda: _backends.mkldnn.enabled,
    "oneDNN deterministic": lambda: _backends.mkldnn.deterministic,  # pyright: ignore[reportAttributeAccessIssue]
    "oneDNN precision": precision_getter("mkldnn", "all"),
    "oneDNN precision of products": precision_getter("mkldnn", "matmul"),
    "oneDNN precision of convolutions": precision_getter("mkldnn", "conv"),
    "quantized engine": lambda: _backends.quantized.engine,
    "kernels in C": native.state,
}
_ELSEWHERE: dict[str, Callable[[], Hashable]] = {
    "cuDNN": lambda: _backends.cudnn.enabled,
    "cuDNN benchmark": lambda: _backends.cudnn.benchmark,
    "cuDNN deterministic": lambda: _backends.cudnn.deterministic,
    "cuDNN precision of convolutions": lambda: _backends.cudnn.conv.fp32_precision,  # pyright: ignore
    "cuBLAS precision": lambda: _backends.cuda.matmul.fp32_precision,
    "cuBLAS sums in half": lambda: _backends.cuda.matmul.allow_fp16_accumulation,
    "cuBLAS, BLASLt or CK": _backends.cuda.preferred_blas_library,
    "cuSOLVER or MAGMA": _backends.cuda.preferred_linalg_library,
}
_BY_DEVICE = {"cpu": _EVERYWHERE | _ON_CPU}


def backend_state(device_type: str) -> State:
    """Return the value of each switch, by name, for kernels on a device ("cpu", "cuda").

    States are equal, and hash equal, as long as no switch changes. Measured costs and plans are valid for one state.
    Autocast, grad mode and the content of the module are not part of it.
    """
    return tuple(zip(_getters(device_type), backend_values(device_type), strict=True))


def backend_values(device_type: str) -> tuple[Hashable, ...]:
    """Return the values of `backend_state`, in its order. It runs at each call and takes about ten microseconds."""
    return tuple([getter() for getter in _getters(device_type).values()])


@cache
def _getters(device_type: str) -> dict[str, Callable[[], Hashable]]:
    return (_BY_DEVICE.get(device_type) or _EVERYWHERE | _ELSEWHERE) | kernel_switches(device_type)


def changed_switches(before: State, after: State) -> list[str]:
    """Return the names of the switches whose values differ between two states."""
    other = dict(after)
    return [name for name, value in before if other.get(name) != value]


def _legacy(getter: Callable[[], str]) -> str:
    """Return a setting of the older interface, which torch refuses to read once the newer one was used as well."""
    try:
        return getter()
    except RuntimeError:
        return "set by backend"
