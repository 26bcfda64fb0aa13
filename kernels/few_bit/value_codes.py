"""Finds the best few levels for the values of an activation's derivative, to the nearest or rounded without bias."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .activations import Activation
from .derivative_moments import SlopeMoments, slope_moments, squared_error
from .input_weights import InputWeight
from .interval_codes import cells_of, input_grid, interval_codes
from .optimal_partitions import best_partition
from .step_functions import StepFunction, by_nearest_level


@dataclass(frozen=True, eq=False)
class UnbiasedLevels:
    """Levels for f'(x): each input gets one of its two neighbours at random so that the mean is f'(x).

    levels: float64 [K], increasing, from the least to the greatest f' on the support; K is at most 2^bits, less where
        f' takes fewer values.
    variance: the integral of w (f' - l) (u - f'), l and u being the levels below and above f'.
    """

    levels: np.ndarray
    variance: float


@lru_cache(maxsize=64)
def value_codes(activation: Activation, bits: int, weight: InputWeight) -> StepFunction:
    """Return at most 2^bits levels (increasing) with the least integral of w (f' - nearest level)^2.

    This is k-means in one dimension over the values of f'. Equal values share a level wherever their inputs lie, so it
    is never worse than `interval_codes` of equal bits. Raises ValueError as that does.
    """
    cells = cells_of(bits)
    moments = slope_moments(activation, weight)
    problem = _NearestCost(moments)
    # equal values may carry much of the weight, the least value too: the first cell begins below it
    begin = moments.lowest - (1e-3 * (moments.highest - moments.lowest) or 1.0)
    places, marked = slope_grid(moments, cells)
    cuts = best_partition(problem, np.append(begin, places), np.append(begin, marked), cells)
    sums = np.diff(problem.sums(cuts), axis=1)
    sums = sums[:, sums[0] > 0]
    by_value = by_nearest_level(moments, np.unique(moments.center + sums[1] / sums[0]))
    # the levels of the best intervals are candidates too, and may be better
    by_interval = interval_codes(activation, bits, weight)
    if by_interval.error < by_value.error - moments.rounding:
        return by_nearest_level(moments, np.unique(by_interval.levels))
    return by_value


@lru_cache(maxsize=64)
def unbiased_levels(activation: Activation, bits: int, weight: InputWeight) -> UnbiasedLevels:
    """Return at most 2^bits levels with the least variance of rounding at random to a neighbour.

    Raises as `value_codes`. Source: stochastic rounding with optimal levels (ZipML, arXiv 1611.05402, section 4.1), by
    the same dynamic program.
    """
    cells = cells_of(bits)
    moments = slope_moments(activation, weight)
    problem = _RandomCost(moments)
    levels = best_partition(problem, *slope_grid(moments, cells), cells - 1)
    sums = problem.sums(levels)
    variance = float(problem.cost(levels[:-1], levels[1:], sums[:, :-1], sums[:, 1:]).sum())
    levels.flags.writeable = False
    return UnbiasedLevels(levels, variance)


@dataclass(frozen=True)
class _SlopeCost:
    """A cost of the inputs whose f' lies between two places, from their sums."""

    moments: SlopeMoments = field(repr=False)

    @property
    def rounding(self) -> float:
        return self.moments.rounding

    def sums(self, places: np.ndarray) -> np.ndarray:
        return self.moments.up_to_slope(places)


class _NearestCost(_SlopeCost):
    """The squared error of one level for all of them."""

    def cost(self, low: np.ndarray, high: np.ndarray, low_sums: np.ndarray, high_sums: np.ndarray) -> np.ndarray:
        return squared_error(high_sums - low_sums)


class _RandomCost(_SlopeCost):
    """The variance of rounding at random to one of the two places."""

    def cost(self, low: np.ndarray, high: np.ndarray, low_sums: np.ndarray, high_sums: np.ndarray) -> np.ndarray:
        weight, first, second = high_sums - low_sums
        low, high = low - self.moments.center, high - self.moments.center
        return np.maximum((low + high) * first - second - low * high * weight, 0.0)


def slope_grid(moments: SlopeMoments, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return values of f', as dense as the best levels of very many: the cube root of their density; a tenth lies
    evenly.

    Values that f' has over a whole stretch of inputs, and those at which it turns, are among them.
    """
    inputs = np.union1d(*input_grid(moments, cells))
    slopes = moments.activation.slopes(inputs)
    fine = np.unique(np.clip(np.append(slopes, moments.turn_slopes), moments.lowest, moments.highest))
    if len(fine) < 2:
        return fine, fine
    width = np.diff(fine)
    dense = np.cbrt(np.maximum(np.diff(moments.up_to_slope(fine)[0]), 0.0) * width**2)
    density = width / width.sum() + 9 * dense / max(dense.sum(), 1e-300)
    reached = np.concatenate([[0.0], np.cumsum(density)])
    spread = np.interp(np.linspace(0, reached[-1], len(inputs)), reached, fine)
    return np.unique(spread), np.union1d(slopes[1:][np.diff(slopes) == 0], moments.turn_slopes)
