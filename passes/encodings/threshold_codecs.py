"""Which values of a step backward only compares with thresholds, so that a bit or two for each element tell it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import torch
from torch import fx

from ...kernels.codec import Codec
from ...kernels.exact_codes.threshold_bits import Thresholds, threshold_codec
from ...kernels.exact_codes.threshold_classes import class_codec
from ..calls import arguments_of, operation_name
from ..step_graph import StepGraph

Arguments = dict[str, Any]
Compared = tuple[Thresholds | None, ...]  # None for anything else than a comparison


def _between(told: Arguments) -> Compared:
    return (Thresholds(told["min_val"], told["max_val"], is_open=True, nan_inside=True, nan_varies=True),)


def _shrunk(told: Arguments) -> Compared:
    return (Thresholds(-told["lambd"], told["lambd"], nan_varies=True),)


def _sloped(told: Arguments) -> Compared:
    return (Thresholds(high=0.0, nan_inside=True),)


def _logsigmoid(told: Arguments) -> Compared:
    """On a CPU the derivative is made of the buffer, and the input's sign alone is read; a GPU has no buffer."""
    return (Thresholds(low=0.0, nan_inside=True) if told["buffer"].meta["val"].numel() else None,)


# With what each operation compares its `self`, from what it is told by name.
_COMPARED: dict[str, Callable[[Arguments], Compared]] = {
    "threshold_backward": lambda told: (Thresholds(high=told["threshold"]),),
    "hardtanh_backward": _between,
    "hardsigmoid_backward": lambda told: (Thresholds(-3.0, 3.0, is_open=True),),
    "hardshrink_backward": _shrunk,
    "softshrink_backward": _shrunk,
    "leaky_relu_backward": _sloped,
    "rrelu_with_noise_backward": _sloped,
    "log_sigmoid_backward": _logsigmoid,
    # of a clamp, and of an absolute value
    "ge": lambda told: (Thresholds(low=told["other"]),),
    "le": lambda told: (Thresholds(high=told["other"]),),
    "sgn": lambda told: (Thresholds(low=0.0), Thresholds(high=0.0)),
}
_NUMBERS = ("threshold", "min_val", "max_val", "lambd", "other")


def codecs_that_compare(step: StepGraph, storage: int) -> Iterator[Codec]:
    """The codec of one or two bits for each element of a storage that backward reads in comparisons alone."""
    dtype = step.storages[storage].base.meta["val"].dtype
    readers = [kernel for kernel in step.kernels if kernel.phase == "backward" and storage in kernel.reads]
    if not all(kernel.role == "compute" and storage not in kernel.writes for kernel in readers):
        return
    calls = [call for kernel in readers for call in kernel.calls]
    reading = [(call, node) for call in calls for node in call.all_input_nodes if step.storage_of.get(node) == storage]
    looking = [(call, node) for call, node in reading if not _reads_nothing(call, node)]
    if any(node.meta["val"].dtype != dtype for _, node in looking):
        return
    compared = {one for call, node in looking for one in _compared(call, node)}
    device = step.storages[storage].base.meta["val"].device
    codec = _codec({one for one in compared if one is not None}, dtype, device) if None not in compared else None
    if codec is not None:
        yield codec


def _codec(compared: set[Thresholds], dtype: torch.dtype, device: torch.device) -> Codec | None:
    """For what is compared with these thresholds: with all the same, or with a lower and an upper one."""
    if len(compared) == 1:
        return threshold_codec(*compared, dtype, device.type)
    low, high = max((one.low for one in compared), default=inf), min((one.high for one in compared), default=-inf)
    is_closed = not any(one.is_open for one in compared)
    two_sides = {(one.low, one.high) for one in compared} == {(low, inf), (-inf, high)}
    return class_codec(low, high, dtype) if is_closed and two_sides else None


def _reads_nothing(call: fx.Node, value: fx.Node) -> bool:
    """Whether a call makes nothing of a value handed to it: a frozen batch normalization with running statistics."""
    if operation_name(call) != "native_batch_norm_backward":
        return False
    told = arguments_of(call)
    places = [place for place, argument in told.items() if argument is value]
    return places == ["input"] and not told["train"] and not told["output_mask"][1]


def _compared(call: fx.Node, value: fx.Node) -> Compared:
    """With what a call compares a value."""
    name = operation_name(call)
    if name not in _COMPARED:
        return (None,)
    told = arguments_of(call)
    reads_alone = [place for place, argument in told.items() if argument is value] == ["self"]
    has_numbers = all(isinstance(told[place], (int, float)) for place in _NUMBERS if place in told)
    return _COMPARED[name](told) if reads_alone and has_numbers else (None,)
