"""Finds values of a step that backward only compares with thresholds, so that one or two bits for each element
suffice.
"""

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
Compared = tuple[Thresholds | None, ...]  # None for a read that is not a comparison


def _between(arguments: Arguments) -> Compared:
    return (Thresholds(arguments["min_val"], arguments["max_val"], is_open=True, nan_inside=True, nan_varies=True),)


def _shrunk(arguments: Arguments) -> Compared:
    return (Thresholds(-arguments["lambd"], arguments["lambd"], nan_varies=True),)


def _sloped(arguments: Arguments) -> Compared:
    return (Thresholds(high=0.0, nan_inside=True),)


def _logsigmoid(arguments: Arguments) -> Compared:
    """Return the comparison: on a CPU only the input's sign is read, in addition to the buffer; a GPU has no buffer."""
    return (Thresholds(low=0.0, nan_inside=True) if arguments["buffer"].meta["val"].numel() else None,)


# The thresholds that each operation compares its `self` with, from its arguments by name.
_COMPARED: dict[str, Callable[[Arguments], Compared]] = {
    "threshold_backward": lambda arguments: (Thresholds(high=arguments["threshold"]),),
    "hardtanh_backward": _between,
    "hardsigmoid_backward": lambda arguments: (Thresholds(-3.0, 3.0, is_open=True),),
    "hardshrink_backward": _shrunk,
    "softshrink_backward": _shrunk,
    "leaky_relu_backward": _sloped,
    "rrelu_with_noise_backward": _sloped,
    "log_sigmoid_backward": _logsigmoid,
    # of a clamp, and of an absolute value
    "ge": lambda arguments: (Thresholds(low=arguments["other"]),),
    "le": lambda arguments: (Thresholds(high=arguments["other"]),),
    "sgn": lambda arguments: (Thresholds(low=0.0), Thresholds(high=0.0)),
}
_NUMBERS = ("threshold", "min_val", "max_val", "lambd", "other")


def codecs_that_compare(step: StepGraph, storage: int) -> Iterator[Codec]:
    """Yield the codec of one or two bits for each element of a storage that backward reads in comparisons alone."""
    dtype = step.storages[storage].base.meta["val"].dtype
    readers = step.backward_readers(storage)
    if not all(storage not in kernel.writes for kernel in readers):
        return
    calls = [call for kernel in readers for call in kernel.calls]
    reading = [(call, node) for call in calls for node in call.all_input_nodes if step.storage_of.get(node) == storage]
    looking = [(call, node) for call, node in reading if not _reads_nothing(call, node)]
    if any(node.meta["val"].dtype != dtype for _, node in looking):
        return
    compared = {thresholds for call, node in looking for thresholds in _compared(call, node)}
    device = step.storages[storage].base.meta["val"].device
    codec = (
        _codec({thresholds for thresholds in compared if thresholds is not None}, dtype, device)
        if None not in compared
        else None
    )
    if codec is not None:
        yield codec


def _codec(compared: set[Thresholds], dtype: torch.dtype, device: torch.device) -> Codec | None:
    """Return the codec for comparisons with these thresholds: all the same, or a lower and an upper one."""
    if len(compared) == 1:
        return threshold_codec(*compared, dtype, device.type)
    low, high = (
        max((thresholds.low for thresholds in compared), default=inf),
        min((thresholds.high for thresholds in compared), default=-inf),
    )
    is_closed = not any(thresholds.is_open for thresholds in compared)
    two_sides = {(thresholds.low, thresholds.high) for thresholds in compared} == {(low, inf), (-inf, high)}
    return class_codec(low, high, dtype) if is_closed and two_sides else None


def _reads_nothing(call: fx.Node, value: fx.Node) -> bool:
    """Return whether a call uses nothing of a value passed to it: a frozen batch normalization with running
    statistics.
    """
    if operation_name(call) != "native_batch_norm_backward":
        return False
    arguments = arguments_of(call)
    places = [place for place, argument in arguments.items() if argument is value]
    return places == ["input"] and not arguments["train"] and not arguments["output_mask"][1]


def _compared(call: fx.Node, value: fx.Node) -> Compared:
    """Return the thresholds that a call compares a value with."""
    name = operation_name(call)
    if name not in _COMPARED:
        return (None,)
    arguments = arguments_of(call)
    reads_alone = [place for place, argument in arguments.items() if argument is value] == ["self"]
    has_numbers = all(isinstance(arguments[place], (int, float)) for place in _NUMBERS if place in arguments)
    return _COMPARED[name](arguments) if reads_alone and has_numbers else (None,)
