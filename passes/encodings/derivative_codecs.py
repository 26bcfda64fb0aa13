"""Finds values of a step that only the backward of an activation reads, so that a code of its derivative suffices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx

from ...kernels.codec import Codec
from ...kernels.few_bit.derivative_codecs import derivative_codecs
from ...kernels.few_bit.saved_derivatives import SavedDerivative
from ..calls import arguments_of, operation_name
from ..step_graph import StepGraph
from ..step_kernels import ComputeKernel

Arguments = dict[str, Any]
Factor = tuple[
    str, SavedDerivative
]  # the operand of a backward call, and the derivative at it that the call multiplies by


def _gelu(arguments: Arguments) -> Factor:
    return "self", SavedDerivative("gelu_tanh" if arguments["approximate"] == "tanh" else "gelu")


def _elu(arguments: Arguments) -> Factor:
    saved = "output" if arguments["is_result"] else "input"
    parameters = tuple(float(arguments[name]) for name in ("alpha", "scale", "input_scale"))
    return "self_or_result", SavedDerivative("elu", saved, parameters)


def _softplus(arguments: Arguments) -> Factor:
    return "self", SavedDerivative("softplus", "input", (float(arguments["beta"]), float(arguments["threshold"])))


def _logsigmoid(arguments: Arguments) -> Factor:
    """Return the factor: on a CPU of the buffer, with the input's sign, which `threshold_codecs` keeps; a GPU has no
    buffer.
    """
    if arguments["buffer"].meta["val"].numel():
        return "buffer", SavedDerivative("logsigmoid", "buffer")
    return "self", SavedDerivative("logsigmoid")


_DERIVATIVES: dict[str, Callable[[Arguments], Factor]] = {
    "gelu_backward": _gelu,
    "silu_backward": lambda arguments: ("self", SavedDerivative("silu")),
    "mish_backward": lambda arguments: ("self", SavedDerivative("mish")),
    "hardswish_backward": lambda arguments: ("self", SavedDerivative("hardswish")),
    "softplus_backward": _softplus,
    "elu_backward": _elu,
    "sigmoid_backward": lambda arguments: ("output", SavedDerivative("sigmoid", "output")),
    "tanh_backward": lambda arguments: ("output", SavedDerivative("tanh", "output")),
    "log_sigmoid_backward": _logsigmoid,
}


def codecs_of_derivatives(step: StepGraph, storage: int, readers: Sequence[ComputeKernel]) -> Iterator[Codec]:
    """Yield the codecs of a derivative for a storage, if all kernels of backward that read it multiply by it."""
    calls = [_sole_call(kernel) for kernel in readers]
    derivatives = {_derivative(step, call, storage) if call is not None else None for call in calls}
    (derivative,) = derivatives if len(derivatives) == 1 else (None,)
    if derivative is not None:
        yield from derivative_codecs(derivative)


def _sole_call(kernel: ComputeKernel) -> fx.Node | None:
    return kernel.calls[0] if len(kernel.calls) == 1 else None


def _derivative(step: StepGraph, call: fx.Node, storage: int) -> SavedDerivative | None:
    """Return the derivative at a value that a call multiplies with; None if it does anything else with it."""
    name = operation_name(call)
    if name not in _DERIVATIVES:
        return None
    arguments = arguments_of(call)
    operand, derivative = _DERIVATIVES[name](arguments)
    nodes = {place: argument for place, argument in arguments.items() if isinstance(argument, fx.Node)}
    reading = [place for place, node in nodes.items() if step.storage_of.get(node) == storage]
    return derivative if reading == [operand] else None
