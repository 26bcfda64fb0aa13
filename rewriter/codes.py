"""Computes few-bit codes for an activation's derivative, by the activation's name or from a user's own function."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..kernels.few_bit.activations import Activation, Pointwise, activation_of
from ..kernels.few_bit.input_weights import Histogram, InputWeight, read_weight
from ..kernels.few_bit.interval_codes import cells_of, interval_codes
from ..kernels.few_bit.value_codes import unbiased_levels, value_codes


@dataclass(frozen=True)
class Codes:
    """The best ways to keep f'(x) in a given number of bits: by intervals of x, by value, and rounded without
    bias.

    There are at most 2^bits levels, and fewer where those make no error.
    borders, levels: inputs above borders[i - 1] and up to borders[i] stand for levels[i].
    error: the integral of w (f' - level)^2, where w is the weight. For uniform weights it is an integral over the
        interval, otherwise an expectation.
    value_levels, value_error: each input stands for the level nearest to f'(x), which is never worse.
    value_borders, value_level_of_interval: an input between two borders stands for
        value_levels[value_level_of_interval[i]].
    value_representatives: inputs at which f' equals the value levels, in the same order.
    unbiased_levels, unbiased_variance: f'(x) is rounded at random to one of its two neighbours, with mean f'(x).
    """

    activation: str
    bits: int
    weight: str
    borders: tuple[float, ...]
    levels: tuple[float, ...]
    error: float
    value_levels: tuple[float, ...]
    value_error: float
    value_borders: tuple[float, ...]
    value_level_of_interval: tuple[int, ...]
    value_representatives: tuple[float, ...]
    unbiased_levels: tuple[float, ...]
    unbiased_variance: float

    def __str__(self) -> str:
        return (
            f"{self.activation}' in {self.bits} bits under {self.weight}: error {self.error:.6g} by intervals, "
            f"{self.value_error:.6g} by value, variance {self.unbiased_variance:.6g} without bias"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the codes as numbers, texts and lists."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def codes(
    activation: str | Pointwise | Activation, bits: int, weight: str | InputWeight | Tensor = "normal:0,1"
) -> Codes:
    """Return the best few-bit codes for the derivative of an activation.

    activation: a name ("gelu"), "package.module:function", or a function of a tensor that is applied to each element.
    bits: 1 to 8.
    weight: "uniform:LOW,HIGH", "normal:MEAN,STD", a weight of `kernels/input_weights.py`, or a tensor of sampled
        inputs.

    Raises ValueError for anything that cannot be read, imported or differentiated.
    Source: Few-bit Backward (arXiv 2202.00441).
    """
    cells_of(bits)
    resolved, input_weight = resolve(activation), resolve_weight(weight)
    intervals = interval_codes(resolved, bits, input_weight)
    values = value_codes(resolved, bits, input_weight)
    unbiased = unbiased_levels(resolved, bits, input_weight)
    return Codes(
        activation=resolved.name,
        bits=bits,
        weight=str(input_weight),
        borders=_numbers(intervals.borders),
        levels=_numbers(intervals.levels),
        error=intervals.error,
        value_levels=_numbers(values.levels),
        value_error=values.error,
        value_borders=_numbers(values.borders),
        value_level_of_interval=tuple(values.level_of_interval.tolist()),
        value_representatives=_numbers(values.representatives),
        unbiased_levels=_numbers(unbiased.levels),
        unbiased_variance=unbiased.variance,
    )


def resolve(activation: str | Pointwise | Activation) -> Activation:
    """Return the activation for a name, a function, or a function's place (package.module:function)."""
    if not isinstance(activation, str) or ":" not in activation:
        return activation_of(activation)
    return replace(activation_of(_imported(activation)), name=activation)


def resolve_weight(weight: str | InputWeight | Tensor) -> InputWeight:
    """Return the weight for a text or for sampled inputs."""
    if isinstance(weight, str):
        return read_weight(weight)
    return Histogram.of_samples(weight) if isinstance(weight, Tensor) else weight


def _imported(reference: str) -> Any:
    """Import `package.module:name`. Modules are found in the current folder too, as with `python -m`."""
    module, _, name = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return reduce(getattr, name.split("."), import_module(module))
    except Exception as error:  # a module may raise whatever it likes while it is imported
        raise ValueError(f"the activation {reference!r} cannot be imported: {type(error).__name__}: {error}") from error


def _numbers(array: np.ndarray) -> tuple[float, ...]:
    return tuple(array.tolist())
