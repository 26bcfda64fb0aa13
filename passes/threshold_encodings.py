"""Which values of a step backward only compares with thresholds, so that a bit for each element tells it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import fx

from ..kernels.codecs import Codec
from ..kernels.threshold_codes import Thresholds, threshold_codec
from .call_signature import arguments_of, operation_name
from .step_graph import StepGraph

Arguments = dict[str, Any]


def _between(told: Arguments) -> Thresholds:
    return Thresholds(told["min_val"], told["max_val"], is_open=True, nan_inside=True)


def _shrunk(told: Arguments) -> Thresholds:
    return Thresholds(-told["lambd"], told["lambd"])


def _sloped(told: Arguments) -> Thresholds:
    return Thresholds(high=0.0, nan_inside=True)


def _signed(told: Arguments) -> Thresholds | None:
    """On a CPU the derivative is made of the buffer, and the input's sign alone is read; a GPU has no buffer."""
    return Thresholds(low=0.0, nan_inside=True) if told["buffer"].meta["val"].numel() else None


# With what each operation compares its `self`, from what it is told by name.
_COMPARED: dict[str, Callable[[Arguments], Thresholds | None]] = {
    "threshold_backward": lambda told: Thresholds(high=told["threshold"]),
    "hardtanh_backward": _between,
    "hardsigmoid_backward": lambda told: Thresholds(-3.0, 3.0, is_open=True),
    "hardshrink_backward": _shrunk,
    "softshrink_backward": _shrunk,
    "leaky_relu_backward": _sloped,
    "rrelu_with_noise_backward": _sloped,
    "log_sigmoid_backward": _signed,
    # of a clamp with one bound
    "ge": lambda told: Thresholds(low=told["other"]),
    "le": lambda told: Thresholds(high=told["other"]),
}


def codecs_that_compare(step: StepGraph, storage: int) -> Iterator[Codec]:
    """The codec of a bit for each element of a storage that backward reads in comparisons alone, all of them equal."""
    dtype = step.storages[storage].base.meta["val"].dtype
    readers = [kernel for kernel in step.kernels if kernel.phase == "backward" and storage in kernel.reads]
    if not all(kernel.role == "compute" and storage not in kernel.writes for kernel in readers):
        return
    calls = [call for kernel in readers for call in kernel.calls]
    reading = [(call, node) for call in calls for node in call.all_input_nodes if step.storage_of.get(node) == storage]
    compared = {
        _thresholds(call, node) if node.meta["val"].dtype == dtype else None
        for call, node in reading
        if not _reads_nothing(call, node)
    }
    (thresholds,) = compared if len(compared) == 1 else (None,)
    codec = threshold_codec(thresholds, dtype) if thresholds is not None else None
    if codec is not None:
        yield codec


def _reads_nothing(call: fx.Node, value: fx.Node) -> bool:
    """Whether a call makes nothing of a value handed to it: a frozen batch normalization with running statistics."""
    if operation_name(call) != "native_batch_norm_backward":
        return False
    told = arguments_of(call)
    places = [place for place, argument in told.items() if argument is value]
    return places == ["input"] and not told["train"] and not told["output_mask"][1]


def _thresholds(call: fx.Node, value: fx.Node) -> Thresholds | None:
    """With what a call compares a value; None if it does anything else with it."""
    name = operation_name(call)
    if name not in _COMPARED:
        return None
    told = arguments_of(call)
    numbers = [told[place] for place in ("threshold", "min_val", "max_val", "lambd", "other") if place in told]
    reads_alone = [place for place, argument in told.items() if argument is value] == ["self"]
    return _COMPARED[name](told) if reads_alone and all(isinstance(one, (int, float)) for one in numbers) else None
