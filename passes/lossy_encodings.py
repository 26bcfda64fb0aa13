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


def codecs_that_lose(step: StepGraph, storage: int) -> Iterator[Codec]:
    """The approximate codecs for what lies in a storage."""
    value = step.storages[storage].base.meta["val"]
    if not value.is_floating_point():
        return
    readers = [kernel for kernel in step.kernels if kernel.phase == "backward" and storage in kernel.reads]
    activations = {_activation(step, kernel, storage) for kernel in readers}
    if len(activations) == 1 and None not in activations:
        yield from derivative_codecs(activations.pop() or "")
    yield from QUANTIZED
    if value.dim() > 1 and value.is_contiguous() and all(map(is_product, readers)):
        yield from row_codecs(value)


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
