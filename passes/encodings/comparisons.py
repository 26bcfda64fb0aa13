"""Finds values that backward compares: noise that moves them across a threshold does not average out, so they stay
exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf
from typing import Any

from torch import fx

from ..calls import arguments_of, operation_name
from ..step_graph import StepGraph, tensors_of
from .backward_reads import ValueRead, reads_as

Arguments = dict[str, Any]

_LEAST_SMOOTH_THRESHOLD = 7.0  # of SoftPlus: above it the derivative counts as 1, which is a thousandth too much

# Operations that compare any operand, so that their result has a jump, or a kink that a jump follows. Operations that
# make truth values or integers of numbers need not be named.
_COMPARING = frozenset(
    (
        # activations
        *("threshold_backward", "hardtanh_backward", "leaky_relu_backward", "elu_backward", "hardswish_backward"),
        *("hardsigmoid_backward", "hardshrink_backward", "softshrink_backward", "rrelu_with_noise_backward"),
        *("log_sigmoid_backward", "_prelu_kernel_backward", "logit_backward"),
        # losses, whose derivatives have jumps, singularities, or kinks as close together as `beta` or `delta` says
        *("smooth_l1_loss_backward", "huber_loss_backward", "multi_margin_loss_backward"),
        *("multilabel_margin_loss_backward", "binary_cross_entropy_backward", "_ctc_loss_backward"),
        # forward's, which occur in other formulas of derivatives, and in models that recompute parts
        *("relu", "leaky_relu", "rrelu_with_noise", "_prelu_kernel", "hardtanh", "hardswish", "hardsigmoid", "elu"),
        *("hardshrink", "softshrink", "threshold", "clamp", "clamp_min", "clamp_max", "maximum", "minimum", "fmax"),
        *("fmin", "max", "min", "amax", "amin", "aminmax", "median", "nanmedian", "kthvalue", "mode", "sort", "topk"),
        *("cummax", "cummin", "abs", "sign", "sgn", "copysign", "heaviside", "angle", "nan_to_num", "floor", "ceil"),
        *("round", "trunc", "frac", "fmod", "remainder", "floor_divide", "_segment_reduce_backward"),
    )
)

# Operations that compare some operands and multiply others.
_COMPARED_OPERANDS = {
    "grid_sampler_2d_backward": ("grid",),  # the pixel of a place
    "grid_sampler_3d_backward": ("grid",),
    "_grid_sampler_2d_cpu_fallback_backward": ("grid",),
    "grid_sampler_2d": ("grid",),
    "grid_sampler_3d": ("grid",),
}

# Operations that compare for some arguments: distances by the sum, and by the largest, of absolute differences.
_COMPARING_IF: dict[str, Callable[[Arguments], bool]] = {
    "_cdist_backward": lambda arguments: not 1 < arguments["p"] < inf,
    "_pdist_backward": lambda arguments: not 1 < arguments["p"] < inf,
    "softplus_backward": lambda arguments: arguments["threshold"] < _LEAST_SMOOTH_THRESHOLD,
    "div": lambda arguments: arguments.get("rounding_mode") is not None,
}


def is_compared(step: StepGraph, reads: Iterable[ValueRead]) -> bool:
    """Return whether any of a value's reads compares it, or a result made of it alone."""
    return any(_compares(step, call, storage) for call, storage in reads)


def is_comparison(call: fx.Node) -> bool:
    """Return whether a call compares any of its operands."""
    name = operation_name(call)
    if name in _COMPARING or name in _COMPARED_OPERANDS:
        return True
    return name in _COMPARING_IF and _COMPARING_IF[name](arguments_of(call))


def _compares(step: StepGraph, call: fx.Node, storage: int) -> bool:
    """Return whether a call compares what it reads of a storage."""
    reading = [node for node in call.all_input_nodes if step.storage_of.get(node) == storage]
    if not any(node.meta["val"].is_floating_point() for node in reading):
        return False
    operands = _COMPARED_OPERANDS.get(operation_name(call))
    if operands is not None:
        return reads_as(step, call, storage, operands)
    return is_comparison(call) or _counts(call)


def _counts(call: fx.Node) -> bool:
    """Return whether a call makes truth values or integers."""
    return any(not (made.is_floating_point() or made.is_complex()) for _, made in tensors_of(call))
