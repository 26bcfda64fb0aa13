"""The private interfaces of torch that capture stands on, each under a name that says what it is used for.

No other file imports what is private in torch: when a release changes one of these, it is put right here.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.nn.utils import stateless
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

# Sees every operation below autograd, by `__torch_dispatch__`.
OperationMode = TorchDispatchMode
# What an operation raises if it is run without data and its result, or its result's shape, depends on them.
NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException)


def tensors_without_data() -> AbstractContextManager[Any]:
    """A context in which new tensors have a device but no data, and every operation only works out shapes."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def tensors_with_data() -> AbstractContextManager[Any]:
    """A context within `tensors_without_data` in which tensors have data again."""
    return unset_fake_temporarily()


def is_without_data(value: Any) -> bool:
    """Whether something is a tensor made under `tensors_without_data`."""
    return isinstance(value, FakeTensor)


@contextmanager
def functionalized() -> Iterator[None]:
    """A context in which in-place operations on functional wrappers become operations that make new values."""
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


def functional_wrapper(tensor: torch.Tensor, requires_grad: bool) -> torch.Tensor:
    """A functional wrapper: in-place changes of it are recorded as new values."""
    wrapper = torch._to_functional_tensor(tensor)  # pyright: ignore[reportAttributeAccessIssue]
    return wrapper.requires_grad_(requires_grad)


def present_value(wrapper: torch.Tensor) -> torch.Tensor:
    """The present value behind a functional wrapper, once views and in-place changes are replayed."""
    if not torch._is_functional_tensor(wrapper):
        return wrapper
    torch._sync(wrapper)
    return torch._from_functional_tensor(wrapper)


def suggested_format(tensor: torch.Tensor) -> torch.memory_format:
    """The memory format that kernels read off a tensor's strides, dense or not: channels last, or contiguous."""
    return suggest_memory_format(tensor)


def forward_sequence() -> int:
    """The number of the autograd node that was made last."""
    return torch.autograd._get_sequence_nr() - 1


def backward_sequence() -> int | None:
    """The number of the autograd node that backward is running; None between two of them."""
    running = torch._C._current_autograd_node()
    return None if running is None else running._sequence_nr()


def swapped(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> AbstractContextManager[Any]:
    """A context in which the module holds other tensors in the place of the parameters and buffers of these names."""
    return stateless._reparametrize_module(model, tensors)


@contextmanager
def checkpoints_passed() -> Iterator[None]:
    """Makes torch's own checkpoints plain calls: what to recompute is planned here, and the bits are the same."""

    def plain(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        yield

    class Plain:
        @staticmethod
        def apply(function: Any, _preserve: bool, *args: Any) -> Any:
            return function(*args)

    before = checkpoint._checkpoint_without_reentrant_generator, checkpoint.CheckpointFunction
    checkpoint._checkpoint_without_reentrant_generator, checkpoint.CheckpointFunction = plain, Plain  # pyright: ignore
    try:
        yield
    finally:
        checkpoint._checkpoint_without_reentrant_generator, checkpoint.CheckpointFunction = before


# Switches of kernels that have a setter but no getter in public: those of a CPU, and those of every other device.
_SWITCHES_ON_CPU = (
    "_get_nnpack_enabled",
    "_is_xnnpack_enabled",
    "_get_onednn_allow_tf32",
    "_get_cpu_allow_fp16_reduced_precision_reduction",
)
_SWITCHES_ELSEWHERE = (
    "_get_cublas_allow_fp16_reduced_precision_reduction",
    "_get_cublas_allow_bf16_reduced_precision_reduction",
    "_get_cublaslt_prefer_grouped_gemm",
    "_get_cudnn_depthwise_kernel",
    "_get_rocm_fa_preferred_backend",
    "_get_fa3_sdp_enabled",
    "_get_sm_carveout_experimental",
    "_cuda_get_cudnn_benchmark_limit",
)
_SWITCHES_OF_ATTENTION = ("_get_overrideable_sdp_enabled", "_get_sdp_priority_order")


@cache
def _switch_getters(device_type: str) -> tuple[tuple[str, Any], ...]:
    own = _SWITCHES_ON_CPU if device_type == "cpu" else _SWITCHES_ELSEWHERE
    names = (*_SWITCHES_OF_ATTENTION, *own)
    return tuple((name, getattr(torch._C, name)) for name in names if hasattr(torch._C, name))


def kernel_switches(device_type: str) -> tuple[tuple[str, Hashable], ...]:
    """What the switches of kernels without a public getter stand at, by name; a release may have more or fewer."""
    values = ((name.removeprefix("_"), getter()) for name, getter in _switch_getters(device_type))
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in values)
