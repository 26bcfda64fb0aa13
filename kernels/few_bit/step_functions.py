"""A derivative in few levels: the level of each input, and an input at which the derivative is each level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .derivative_moments import SlopeMoments, integrate

# Borders this near to a known breakpoint of f' are moved onto it.
_NEAR = 1e-12


@dataclass(frozen=True, eq=False)
class StepFunction:
    """An approximation of f': inputs above borders[i - 1] and up to borders[i] get levels[level_of_interval[i]].

    borders: float64 [m], increasing; the first interval has no lower end and the last no upper one.
    level_of_interval: int64 [m + 1].
    levels: float64 [K].
    representatives: float64 [K], inputs at which f' is each level, to 1e-7 also if they are rounded to float32; where
        f' jumps over a level, those at which it is nearest.
    error: the integral of w (f' - level)^2.
    """

    borders: np.ndarray
    level_of_interval: np.ndarray
    levels: np.ndarray
    representatives: np.ndarray
    error: float

    def __post_init__(self) -> None:
        for array in (self.borders, self.level_of_interval, self.levels, self.representatives):
            array.flags.writeable = False  # shared by all callers that need the same codes

    def codes(self, x: np.ndarray) -> np.ndarray:
        """Return the index of each input's level (int64, the shape of x)."""
        return self.level_of_interval[np.searchsorted(self.borders, x, "left")]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the level of each input (float64, the shape of x)."""
        return self.levels[self.codes(x)]


def by_intervals(moments: SlopeMoments, borders: np.ndarray, levels: np.ndarray) -> StepFunction:
    """Return the step function with one level for each interval between borders."""
    return _step_function(moments, borders, np.arange(len(levels)), levels)


def by_nearest_level(moments: SlopeMoments, levels: np.ndarray) -> StepFunction:
    """Return the step function with the nearest of some levels (increasing) for each input."""
    thresholds = 0.5 * (levels[:-1] + levels[1:])
    low, high = moments.weight.support
    ends = np.unique(np.concatenate([[low, high], moments.turns, moments.where(thresholds).ravel()]))
    nearest = np.searchsorted(thresholds, moments.activation.slopes(0.5 * (ends[:-1] + ends[1:])), "left")
    changes = np.flatnonzero(np.diff(nearest))
    index = nearest[np.append(changes, len(nearest) - 1)]
    return _step_function(moments, ends[changes + 1], index, levels)


def _step_function(moments: SlopeMoments, borders: np.ndarray, index: np.ndarray, levels: np.ndarray) -> StepFunction:
    borders = borders.copy()
    for known in moments.activation.breakpoints:
        borders[np.abs(borders - known) <= _NEAR * max(abs(known), 1.0)] = known
    representatives = _representatives(moments, borders, index, levels)
    return StepFunction(borders, index, levels, representatives, _error(moments, borders, index, levels))


def _error(moments: SlopeMoments, borders: np.ndarray, index: np.ndarray, levels: np.ndarray) -> float:
    """Return the integral of w (f' - level)^2, computed directly: a difference of sums would be inexact near 0."""
    ends = np.union1d(moments.edges, borders)
    middles = 0.5 * (ends[:-1] + ends[1:])
    level = levels[index[np.searchsorted(borders, middles, "left")]]
    return float(integrate(moments.activation, moments.weight, level[:, None], ends[:-1], ends[1:])[2].sum())


def _representatives(moments: SlopeMoments, borders: np.ndarray, index: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the inputs at which f' is nearest to each level.

    Candidates are the middle of the level's widest interval, crossings and turns.
    """
    low, high = moments.weight.support
    ends = np.clip(np.concatenate([[low], borders, [high]]), low, high)
    middles = np.full(len(levels), 0.5 * (low + high))
    order = np.argsort(np.diff(ends))  # the widest comes last, and stays
    middles[index[order]] = (0.5 * (ends[:-1] + ends[1:]))[order]
    turns = np.broadcast_to(moments.turns[:, None], (len(moments.turns), len(levels)))
    candidates = np.concatenate([middles[None], moments.where(levels), turns])
    rounded = np.clip(candidates.astype(np.float32).astype(np.float64), low, high)
    far = [np.abs(moments.activation.slopes(inputs) - levels) for inputs in (candidates, rounded)]
    return candidates[np.argmin(np.maximum(*far), axis=0), np.arange(len(levels))]
