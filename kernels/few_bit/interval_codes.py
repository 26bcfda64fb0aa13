"""The best step function for an activation's derivative: few intervals of inputs, each with one level."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .activations import Activation
from .derivative_moments import SlopeMoments, slope_moments, squared_error
from .input_weights import InputWeight
from .optimal_partitions import best_partition
from .step_functions import StepFunction, by_intervals

MOST_BITS = 8
_POINTS = 1536
_POINTS_PER_CELL = 8
_FINE = 24  # pieces of a panel at which the grid's density is sampled


@lru_cache(maxsize=64)
def interval_codes(activation: Activation, bits: int, weight: InputWeight) -> StepFunction:
    """Return the step function of 2^bits intervals with the least integral of w (f' - level)^2.

    There are fewer intervals where more do not lower the error. Raises ValueError for bits outside of 1 to 8, and where
    f' is not finite. Source: Few-bit Backward (arXiv 2202.00441), equation 2. Here it is solved by a dynamic program
    over all borders on a grid, then Newton's method: at the optimum f'(border) is the mean of the levels on both sides.
    """
    cells = cells_of(bits)
    moments = slope_moments(activation, weight)
    cuts = best_partition(_IntervalCost(moments), *input_grid(moments, cells), cells)
    sums = np.diff(moments.up_to(cuts), axis=1)
    means = np.divide(sums[1], sums[0], out=np.zeros_like(sums[1]), where=sums[0] > 0) + moments.center
    middles = activation.slopes(0.5 * (cuts[:-1] + cuts[1:]))
    levels = np.where(sums[0] > 0, means, middles)  # where no input counts, any level is as good
    return by_intervals(moments, cuts[1:-1], levels)


@dataclass(frozen=True)
class _IntervalCost:
    """The squared error of one level for all inputs between two places."""

    moments: SlopeMoments = field(repr=False)

    @property
    def rounding(self) -> float:
        return self.moments.rounding

    def sums(self, places: np.ndarray) -> np.ndarray:
        return self.moments.up_to(places)

    def cost(self, low: np.ndarray, high: np.ndarray, low_sums: np.ndarray, high_sums: np.ndarray) -> np.ndarray:
        return squared_error(high_sums - low_sums)


def cells_of(bits: int) -> int:
    """Return the number of levels for a number of bits; raises ValueError outside of 1 to 8."""
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"bits {bits} is outside of 1 to {MOST_BITS}: a code is kept in at most one byte")
    return 1 << bits


def input_grid(moments: SlopeMoments, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs at which an interval may end, and those of them at which f' jumps or turns.

    They are as dense as the best borders of very many intervals, which is the cube root of w f''^2 (Panter and Dite's
    law).
    A tenth of them lies evenly and a tenth as the weight does.
    """
    low, high = moments.edges[:-1, None], moments.edges[1:, None]
    fine = np.unique(np.append(low + (high - low) * (np.arange(_FINE) / _FINE), moments.edges[-1]))
    width = np.diff(fine)
    mass = moments.weight.density(fine[:-1] + 0.5 * width) * width
    bend = np.cbrt(mass * np.diff(moments.activation.slopes(fine)) ** 2)
    density = width / width.sum() + mass / mass.sum() + 8 * bend / max(bend.sum(), 1e-300)
    reached = np.concatenate([[0.0], np.cumsum(density)])
    spread = np.interp(np.linspace(0, reached[-1], _POINTS + _POINTS_PER_CELL * cells), reached, fine)
    narrow = np.diff(moments.edges) < 1e-9 * (fine[-1] - fine[0])
    jumps = moments.edges[np.append(narrow, False) | np.append(False, narrow)]
    known = np.array(moments.activation.breakpoints)
    known = known[(known > fine[0]) & (known < fine[-1])]
    return np.unique(spread), np.unique(np.concatenate([moments.turns, jumps, known]))
