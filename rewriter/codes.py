"""Few-bit codes for an activation's derivative, by the activation's name or from a user's own function."""

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
    """The best ways to keep f'(x) in so many bits: by intervals of x, by its value, and rounded without bias.

    borders, levels, error: inputs above borders[i - 1] and up to borders[i] stand for levels[i]; error is the integral
    of w (f' - level)^2, w the weight (an integral over the interval for uniform weights, else an expectation).
    value_levels, value_error: each input stands for the level nearest to f'(x); never worse. Between two of
    value_borders it is value_levels[value_level_of_interval[i]]; f' at value_representatives[k] is value_levels[k].
    unbiased_levels, unbiased_variance: f'(x) is rounded at random to one of its two neighbours, f'(x) in the mean.
    Levels are at most 2^bits, and fewer where those make no error.
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
        """As numbers, texts and lists."""
        return {name: list(told) if isinstance(told, tuple) else told for name, told in asdict(self).items()}


def codes(
    activation: str | Pointwise | Activation, bits: int, weight: str | InputWeight | Tensor = "normal:0,1"
) -> Codes:
    """The best few-bit codes for the derivative of an activation.

    activation: a name ("gelu"), "package.module:function", or a function of a tensor that is applied to each element.
    bits: 1 to 8. weight: "uniform:LOW,HIGH", "normal:MEAN,STD", a weight of `kernels/input_weights.py`, or a tensor of
    sampled inputs.

    Raises ValueError for what cannot be read, imported or differentiated. Source: Few-bit Backward (arXiv 2202.00441).
    """
    cells_of(bits)
    known, under = resolve(activation), resolve_weight(weight)
    intervals = interval_codes(known, bits, under)
    values = value_codes(known, bits, under)
    unbiased = unbiased_levels(known, bits, under)
    return Codes(
        activation=known.name,
        bits=bits,
        weight=str(under),
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
    """The activation of a name, of a function, or of a function's place (package.module:function)."""
    if not isinstance(activation, str) or ":" not in activation:
        return activation_of(activation)
    return replace(activation_of(_imported(activation)), name=activation)


def resolve_weight(weight: str | InputWeight | Tensor) -> InputWeight:
    """The weight of a text, or of sampled inputs."""
    if isinstance(weight, str):
        return read_weight(weight)
    return Histogram.of_samples(weight) if isinstance(weight, Tensor) else weight


def _imported(place: str) -> Any:
    """What `package.module:name` says; modules are found in the current folder too, as with `python -m`."""
    module, _, name = place.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return reduce(getattr, name.split("."), import_module(module))
    except Exception as error:  # a module may raise whatever it likes while it is imported
        raise ValueError(f"the activation {place!r} cannot be imported: {type(error).__name__}: {error}") from error


def _numbers(array: np.ndarray) -> tuple[float, ...]:
    return tuple(array.tolist())
