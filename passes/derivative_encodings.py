"""Which values of a step only the backward of an activation reads, so that a code of its derivative serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..kernels.codecs import Codec
from ..kernels.derivative_codes import derivative_codecs
from .call_signature import operation_name
from .step_graph import Kernel, StepGraph

# The backward of an activation: the argument that is its input, and what its other arguments have to be for which name.
_DERIVATIVES: dict[str, tuple[int, dict[tuple[object, ...], str]]] = {
    "aten.gelu_backward.default": (1, {("none",): "gelu", ("tanh",): "gelu_tanh"}),
    "aten.silu_backward.default": (1, {(): "silu"}),
    "aten.mish_backward.default": (1, {(): "mish"}),
    "aten.hardswish_backward.default": (1, {(): "hardswish"}),
    "aten.hardsigmoid_backward.default": (1, {(): "hardsigmoid"}),
    "aten.softplus_backward.default": (1, {(1, 20): "softplus"}),
}

# What compares its operand with a threshold: noise that moves a value across it does not average out.
_COMPARING = (
    *("threshold_backward", "hardtanh_backward", "leaky_relu_backward", "elu_backward", "hardswish_backward"),
    *("hardsigmoid_backward", "hardshrink_backward", "softshrink_backward", "rrelu_with_noise_backward"),
    *("_prelu_kernel_backward", "relu", "clamp", "sign", "where", "max", "min", "amax", "amin", "maximum", "minimum"),
    *("le", "lt", "ge", "gt", "eq", "ne", "abs", "floor", "ceil", "round", "sort", "topk"),
)


def codecs_of_derivatives(step: StepGraph, storage: int, readers: Sequence[Kernel]) -> Iterator[Codec]:
    """The codecs of a derivative for a storage, if all kernels of backward that read it multiply by it."""
    activations = {_activation(step, kernel, storage) for kernel in readers}
    if len(activations) == 1 and None not in activations:
        yield from derivative_codecs(activations.pop() or "")


def compares(kernel: Kernel) -> bool:
    """Whether a kernel compares what it reads with a threshold."""
    if kernel.role != "compute":
        return False
    return any(operation_name(call) in _COMPARING for call in kernel.calls)


def _activation(step: StepGraph, kernel: Kernel, storage: int) -> str | None:
    """The activation whose derivative at a value a kernel multiplies with; None if it does anything else with it."""
    if kernel.role != "compute" or len(kernel.calls) != 1:
        return None
    (call,) = kernel.calls
    place, names = _DERIVATIVES.get(str(call.target), (0, {}))
    reading = [i for i, argument in enumerate(call.args) if step.storage_of.get(argument) == storage]  # pyright: ignore
    if not names or reading != [place]:
        return None
    told = (*call.args[place + 1 :], *call.kwargs.values())
    if not told and ("none",) in names:
        return names[("none",)]
    return names.get(told)
