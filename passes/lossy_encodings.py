"""Which approximate codecs a value of a step may have: by what reads it in backward."""

from __future__ import annotations

from collections.abc import Iterator

from ..kernels.approximate_codecs import QUANTIZED, derivative_codecs, row_codecs
from ..kernels.codecs import Codec
from .products import is_product
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


def codecs_that_lose(step: StepGraph, storage: int) -> Iterator[Codec]:
    """The approximate codecs for what lies in a storage."""
    value = step.storages[storage].base.meta["val"]
    if not value.is_floating_point():
        return
    readers = [kernel for kernel in step.kernels if kernel.phase == "backward" and storage in kernel.reads]
    activations = {_activation(step, kernel, storage) for kernel in readers}
    if len(activations) == 1 and None not in activations:
        yield from derivative_codecs(activations.pop() or "")
    if any(map(_compares, readers)):
        return
    yield from QUANTIZED
    if value.dim() > 1 and value.is_contiguous() and all(map(_is_linear, readers)):
        yield from row_codecs(value)


def _is_linear(kernel: Kernel) -> bool:
    """Whether a kernel is a product with weights, not one of attention, whose probabilities all rows make together."""
    names = [str(call.target) for call in kernel.calls]
    return is_product(kernel) and not any(word in name for name in names for word in ("attention", "bmm"))


def _compares(kernel: Kernel) -> bool:
    if kernel.role != "compute":
        return False
    return any(call.target._schema.name.partition("::")[2] in _COMPARING for call in kernel.calls)  # pyright: ignore


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
