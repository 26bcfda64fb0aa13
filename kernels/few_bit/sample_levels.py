"""Finds the best few levels for samples: as good as those for their distribution (`value_codes`), in very little
time.
"""

from __future__ import annotations

import numpy as np

_GRID = 384  # the places at which a dynamic program may end a level's samples
_EVEN_BINS = 4096
_MOST_CELLS = 16  # for more cells, levels as dense as the cube root of the samples' density are as good
_ROUNDS = 40


def levels_of_samples(samples: np.ndarray, weights: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` levels (float64, increasing) with the least sum of w (sample - nearest level)^2.

    samples, weights: float64 [n], finite; weights are not negative and not all 0.

    This is k-means in one dimension. Up to 16 levels start from a dynamic program over a grid (Wang and Song 2011),
    more from Panter and Dite's density; Lloyd's iteration follows.
    """
    kept = weights > 0
    order = np.argsort(samples[kept])
    values, weights = samples[kept][order], weights[kept][order]
    center = float(np.average(values, weights=weights))
    values = values - center  # so that nothing cancels in what is summed
    sums = np.stack([weights, weights * values, weights * values**2])
    sums = np.concatenate([np.zeros((3, 1)), np.cumsum(sums, axis=1)], axis=1)
    grid = _grid(values, weights, _GRID if count <= _MOST_CELLS else count)
    ends = np.searchsorted(values, grid, "right")
    levels = _means(sums, _best_ends(sums[:, ends], ends, count) if count <= _MOST_CELLS else ends)
    for _ in range(_ROUNDS):
        middles = 0.5 * (levels[:-1] + levels[1:])
        better = _means(sums, np.concatenate([[0], np.searchsorted(values, middles, "right"), [len(values)]]))
        if np.array_equal(better, levels):
            break
        levels = better
    return levels + center


def _grid(values: np.ndarray, weights: np.ndarray, cells: int) -> np.ndarray:
    """Return ends of cells of increasing values, from before the first to the last, as dense as the cube root of the
    weight.
    """
    low, high = values[0], values[-1]
    if low == high:
        return np.array([low - 1.0, high])
    counts, edges = np.histogram(values, _EVEN_BINS, (low, high), weights=weights)
    dense = np.cbrt(counts / counts.sum())
    reached = np.concatenate([[0.0], np.cumsum(dense / dense.sum() + 0.1 / _EVEN_BINS)])
    inner = np.interp(np.linspace(0, reached[-1], cells + 1)[1:-1], reached, edges)
    return np.concatenate([[low - 1.0], inner, [high]])


def _best_ends(sums: np.ndarray, ends: np.ndarray, count: int) -> np.ndarray:
    """Return the ends of cells for which one level each makes the least error."""
    weight, first, second = sums[:, None, :] - sums[:, :, None]  # from the one end (rows) to the other
    means = np.divide(first, weight, out=np.zeros_like(first), where=weight > 0)
    cost = np.where(weight >= 0, np.maximum(second - means * first, 0.0), np.inf)
    cost[np.tril_indices(len(ends), -1)] = np.inf
    best, choices = cost[0], []
    for _ in range(count - 1):
        tried = best[:, None] + cost
        choices.append(tried.argmin(0))
        best = tried[choices[-1], np.arange(len(ends))]
    places = [len(ends) - 1]
    for choice in reversed(choices):
        places.append(int(choice[places[-1]]))
    return ends[np.array([0, *reversed(places)])]


def _means(sums: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the mean of each cell's values, for the cells that have any."""
    weight, first, _ = np.diff(sums[:, ends], axis=1)
    return np.unique(first[weight > 0] / weight[weight > 0])
