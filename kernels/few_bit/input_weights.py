"""Weights of an activation's inputs: even over an interval, normally distributed, or as counted in samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

# Only 2e-23 of a normal distribution lies beyond this many standard deviations.
_DEVIATIONS = 10.0
_BINS = 512


@dataclass(frozen=True)
class Uniform:
    """Every input from `low` to `high` counts alike, with density 1: errors are integrals over the interval, not
    means.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        _check_finite(f"uniform:{self.low},{self.high}", self.low, self.high)
        if not self.low < self.high:
            raise ValueError(f"the weight uniform:{self.low:g},{self.high:g} is empty: LOW must be below HIGH")
        _check_apart(str(self), self.low, self.high)

    def __str__(self) -> str:
        return f"uniform:{self.low:g},{self.high:g}"

    @property
    def support(self) -> tuple[float, float]:
        """Return the lowest and the highest input that counts."""
        return self.low, self.high

    @property
    def edges(self) -> tuple[float, ...]:
        """Return the inputs at which the density jumps within the support: none."""
        return ()

    def density(self, x: np.ndarray) -> np.ndarray:
        """Return the weight per unit of input at x (float64, any shape) within the support."""
        return np.ones_like(x)


@dataclass(frozen=True)
class Normal:
    """Normally distributed inputs: errors are expectations. The support ends 10 standard deviations from the mean."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        _check_finite(f"normal:{self.mean},{self.std}", self.mean, self.std)
        if self.std <= 0:
            raise ValueError(f"the weight normal:{self.mean:g},{self.std:g} has no width: STD must be above 0")
        _check_apart(str(self), *self.support)

    def __str__(self) -> str:
        return f"normal:{self.mean:g},{self.std:g}"

    @property
    def support(self) -> tuple[float, float]:
        """Return the lowest and the highest input that counts."""
        return self.mean - _DEVIATIONS * self.std, self.mean + _DEVIATIONS * self.std

    @property
    def edges(self) -> tuple[float, ...]:
        """Return the inputs at which the density jumps within the support: none."""
        return ()

    def density(self, x: np.ndarray) -> np.ndarray:
        """Return the weight per unit of input at x (float64, any shape)."""
        return np.exp(-0.5 * ((x - self.mean) / self.std) ** 2) / (self.std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Histogram:
    """Inputs distributed as counted, evenly within each bin: errors are expectations.

    bin_edges: increasing, one more than `counts`.
    counts: not negative, not all zero, in any unit.
    """

    bin_edges: tuple[float, ...] = field(repr=False)
    counts: tuple[float, ...] = field(repr=False)

    def __post_init__(self) -> None:
        edges, counts = np.asarray(self.bin_edges, float), np.asarray(self.counts, float)
        if edges.ndim != 1 or counts.ndim != 1 or len(edges) != len(counts) + 1 or not len(counts):
            raise ValueError(f"a histogram of {counts.size} counts needs {counts.size + 1} edges, not {edges.size}")
        if not (np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
            raise ValueError("the edges of a histogram must be finite numbers, each above the one before")
        if not (np.isfinite(counts).all() and (counts >= 0).all() and counts.sum() > 0):
            raise ValueError("the counts of a histogram must be finite numbers, none negative and one above 0")
        object.__setattr__(self, "bin_edges", tuple(edges.tolist()))
        object.__setattr__(self, "counts", tuple(counts.tolist()))
        _check_apart(str(self), *self.support)

    def __str__(self) -> str:
        low, high = self.support
        return f"histogram:{low:g},{high:g} ({len(self.counts)} bins)"

    @classmethod
    def of_samples(cls, samples: Tensor, bins: int = _BINS) -> Histogram:
        """Return the histogram of a tensor's elements (any shape and floating dtype), in bins that hold about as many
        each.

        bins: at most this many. A value that many elements share is spread over the bin above it. Raises ValueError for
        elements that are not finite, or all the same.
        """
        values = samples.detach().double().flatten().cpu().numpy()
        if not values.size or not np.isfinite(values).all():
            raise ValueError(
                f"{values.size} samples cannot make a histogram: they must be finite numbers, at least two"
            )
        edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
        if len(edges) < 2:
            raise ValueError(f"all {values.size} samples are {values[0]:g}: a histogram needs two different ones")
        return cls(tuple(edges), tuple(np.histogram(values, edges)[0]))

    @property
    def support(self) -> tuple[float, float]:
        """Return the lowest and the highest input that counts."""
        filled = np.flatnonzero(self.counts)
        return self.bin_edges[filled[0]], self.bin_edges[filled[-1] + 1]

    @property
    def edges(self) -> tuple[float, ...]:
        """Return the inputs at which the density jumps within the support."""
        low, high = self.support
        return tuple(edge for edge in self.bin_edges if low < edge < high)

    def density(self, x: np.ndarray) -> np.ndarray:
        """Return the weight per unit of input at x (float64, any shape) within the support; at an edge, that of the
        bin above.
        """
        edges, counts = np.asarray(self.bin_edges), np.asarray(self.counts)
        densities = counts / counts.sum() / np.diff(edges)
        return densities[np.clip(np.searchsorted(edges, x, "right") - 1, 0, len(counts) - 1)]


InputWeight = Uniform | Normal | Histogram
_KINDS = {"uniform": (Uniform, "LOW,HIGH"), "normal": (Normal, "MEAN,STD")}


def read_weight(text: str) -> InputWeight:
    """Return the weight that `uniform:LOW,HIGH` or `normal:MEAN,STD` describes; raises ValueError for any other
    text.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in _KINDS:
        raise ValueError(f"the weight {text!r} cannot be read: write uniform:LOW,HIGH or normal:MEAN,STD")
    weight_type, form = _KINDS[kind]
    numbers = rest.split(",")
    if len(numbers) != 2:
        raise ValueError(f"the weight {text!r} needs two numbers: write {kind}:{form}")
    try:
        first, second = map(float, numbers)
    except ValueError:
        raise ValueError(f"the weight {text!r} has a part that is not a number: write {kind}:{form}") from None
    return weight_type(first, second)


def _check_finite(weight: str, *numbers: float) -> None:
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"the weight {weight} has {number} in it: its numbers must be finite")


def _check_apart(weight: str, low: float, high: float) -> None:
    """Raise ValueError unless float64 can distinguish enough inputs between the ends."""
    if not (math.isfinite(high - low) and high - low > 1e-9 * max(abs(low), abs(high))):
        raise ValueError(
            f"the weight {weight} counts inputs from {low:.17g} to {high:.17g}, too few of which float64 "
            "distinguishes: its width must be above 1e-9 of its ends and finite"
        )
