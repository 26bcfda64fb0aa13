"""Cuts an interval into few cells at the least total cost: exactly on a grid, then between the grid's points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

Places = np.ndarray
"""Coordinates of possible borders (float64, any shape)."""

_COARSE = 4
_FEWEST = 96
# Offsets tried around each cut, in units of its own step; the first of equals is taken.
_OFFSETS = np.array([0.0, -0.25, 0.25, -0.5, 0.5, -1.0, 1.0])
# Up to this many cuts the grid is fine enough to decide how many of them lie between marked places.
_DECIDED = 20
_EXCHANGES = 16
_HOPELESS = 1e-3
_SETTLED = 1e-9
_TRIALS = 6
_NEWTON_STEPS = 30
_DIFFERENCE = 1e-3  # of the narrower cell next to a cut
_CONVERGED = 1e-13


class CellCost(Protocol):
    """The cost of cells. A cell within another must not cost more than it, so that too costly cells can be ruled
    out.
    """

    @property
    def rounding(self) -> float:
        """Return the size of differences of costs that are only rounding."""
        ...

    def sums(self, places: Places) -> np.ndarray:
        """Return what is summed up to each place: [n, *places.shape]."""
        ...

    def cost(self, low: Places, high: Places, low_sums: np.ndarray, high_sums: np.ndarray) -> np.ndarray:
        """Return the costs of the cells between two places each (broadcast), with the sums up to there."""
        ...


@dataclass(frozen=True)
class Grid:
    """Places at which an interval may be cut, increasing, from end to end, with the sums up to there."""

    problem: CellCost
    places: np.ndarray
    sums: np.ndarray

    def cost(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the costs of the cells between two indices each."""
        return self.problem.cost(self.places[low], self.places[high], self.sums[:, low], self.sums[:, high])

    def total(self, chosen: np.ndarray) -> float:
        """Return the cost of the cells between successive indices."""
        return float(self.cost(chosen[:-1], chosen[1:]).sum())


def best_partition(problem: CellCost, places: np.ndarray, marked: np.ndarray, cells: int) -> np.ndarray:
    """Return the ends and cuts of the cells of least total cost [cells + 1], or of fewer cells if more save nothing.

    places: the initial grid (increasing, at least two).
    marked: places within it at which the cost is not smooth; they are on the grid in any case.

    The dynamic program gives the optimum over all cuts on the grid. `settle` moves them between its points, and
    `exchange` compares partitions that cost nearly the same on the grid.
    """
    places = np.union1d(places, marked)
    if len(places) < 2 or cells < 1:
        return places
    chosen = best_on_grid(Grid(problem, places, problem.sums(places)), cells)
    steps = np.minimum(np.diff(places)[np.maximum(chosen[1:-1] - 1, 0)], np.diff(places)[chosen[1:-1]])
    cuts = settle(problem, places[chosen], steps)
    return exchange(problem, cuts, marked) if len(cuts) > _DECIDED else cuts


def best_on_grid(grid: Grid, cells: int) -> np.ndarray:
    """Return indices of the ends and the cuts of the best cells, `cells` at most: the optimum over the grid.

    It takes O(cells n b) time. D_k(j) = min over i < j of D_{k-1}(i) + cost(i, j). A cell that alone costs more than
    some whole partition is in no best one, nor is any cell around it. So for each j only i from first(j) on are tried,
    b of them at most. That partition is the optimum of every fourth point, found by the same method.
    """
    count = len(grid.places)
    cells = min(cells, count - 1)
    ceiling = grid.total(_rough(grid, cells))
    high = np.arange(count)
    first = _first_within(grid, high, ceiling * (1 + 1e-9) + grid.problem.rounding)
    band = int((high - first).max())
    low = np.maximum(high[:, None] - band + np.arange(band), 0)
    costs = np.where(high[:, None] - band + np.arange(band) < 0, np.inf, grid.cost(low, high[:, None]))
    best = np.full((cells + 1, band + count), np.inf)  # band infinities stand before the first place
    best[0, band] = 0.0
    room = np.empty_like(costs)
    for cell in range(1, cells + 1):
        before = np.lib.stride_tricks.sliding_window_view(best[cell - 1], band)[:count]
        np.add(before, costs, out=room)
        np.min(room, axis=1, out=best[cell, band:])
    ends = best[:, -1]
    used = int(np.flatnonzero(ends <= ends.min() + grid.problem.rounding)[0])
    chosen = [count - 1]
    for cell in range(used, 0, -1):
        here = chosen[-1]
        chosen.append(here - band + int(np.argmin(best[cell - 1, here : here + band] + costs[here])))
    return np.array(chosen[::-1])


def settle(problem: CellCost, cuts: np.ndarray, steps: np.ndarray, turns: int = 6) -> np.ndarray:
    """Move the inner cuts of a partition [cells + 1] to where no small move lowers the cost; it never rises.

    steps: the initial step of each inner cut. Trying places in turn finds the best where the cost has a kink, and
        Newton's
    method where cuts depend on each other. turns: the most rounds of both.
    """
    if len(cuts) == 2:
        return cuts
    total = _total(problem, cuts)
    for _ in range(turns):
        cuts, before = _newton(problem, _try_places(problem, cuts, steps)), total
        total = _total(problem, cuts)
        if before - total <= _SETTLED * total + problem.rounding:
            break
        steps = steps * 0.5**_TRIALS * 8
    return cuts


def _try_places(problem: CellCost, cuts: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Try seven places for every cut, within its step, in all combinations; a cut that moves less than its step
    halves it.
    """
    cuts, steps = cuts.copy(), steps.copy()
    for _ in range(_TRIALS):
        tried = np.clip(cuts[1:-1, None] + steps[:, None] * _OFFSETS, cuts[0], cuts[-1])
        chosen = _cheapest_places(problem, tried, cuts[[0, -1]])
        cuts[1:-1] = tried[np.arange(len(tried)), chosen]
        steps *= np.where(np.abs(_OFFSETS[chosen]) < 1, 0.5, 1.0)
    return cuts


def _newton(problem: CellCost, cuts: np.ndarray) -> np.ndarray:
    """Apply Newton's method to all inner cuts, with derivatives by differences, while it lowers the cost."""
    best = _total(problem, cuts)
    for _ in range(_NEWTON_STEPS):
        step = _newton_step(problem, cuts)
        if step is None:
            break
        for factor in (1.0, 0.5, 0.1):
            moved = cuts.copy()
            moved[1:-1] += factor * step
            total = _total(problem, moved)
            if total < best:
                break
        else:
            break
        gained, cuts, best = best - total, moved, total
        if gained < _CONVERGED * best:
            break
    return cuts


def _newton_step(problem: CellCost, cuts: np.ndarray) -> np.ndarray | None:
    """Return the step to the minimum of the quadratic through the cost at three places of every cut; None if it has
    none.

    The cost is a sum over cells, so that its second derivatives are a matrix of three diagonals.
    """
    room = np.minimum(np.diff(cuts)[:-1], np.diff(cuts)[1:])
    reach = _DIFFERENCE * room
    if not (reach > 0).all():
        return None
    places = cuts[1:-1, None] + reach[:, None] * np.array([-1.0, 0.0, 1.0])
    first, inner, last = _cell_costs(problem, places, cuts[[0, -1]])
    left = np.concatenate([first[None], inner[:, 1, :]])  # the cell left of each cut, by the cut's place
    right = np.concatenate([inner[:, :, 1], last[None]])
    around = left + right
    slope = (around[:, 2] - around[:, 0]) / (2 * reach)
    bend = np.diag((around[:, 2] - 2 * around[:, 1] + around[:, 0]) / reach**2)
    mixed = (inner[:, 2, 2] - inner[:, 2, 0] - inner[:, 0, 2] + inner[:, 0, 0]) / (4 * reach[:-1] * reach[1:])
    bend += np.diag(mixed, 1) + np.diag(mixed, -1)
    try:
        step = np.linalg.solve(bend, -slope)
    except np.linalg.LinAlgError:
        return None
    longest = float((np.abs(step) / room).max())
    return step * min(1.0, 0.3 / longest) if longest > 0 and np.isfinite(longest) else None


def _cell_costs(problem: CellCost, places: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the costs of the cells between all places [cuts, choices] of successive cuts: first, between, last.

    First [choices] is the cell from the lower end, between [cuts - 1, choices, choices], last [choices].
    """
    sums, (below, above) = problem.sums(places), problem.sums(ends).T[:, :, None]
    low, high = places[:-1, :, None], places[1:, None, :]
    between = problem.cost(low, high, sums[:, :-1, :, None], sums[:, 1:, None, :])
    first = problem.cost(ends[:1], places[0], below, sums[:, 0])
    last = problem.cost(places[-1], ends[1:], sums[:, -1], above)
    return first, np.where(low <= high, between, np.inf), last


def exchange(problem: CellCost, cuts: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Move a cut from between two marked places to between two others, while that lowers the cost.

    The most promising move is tried first, assuming that the cost of k cells goes as 1 / k^2. Moves that promise a loss
    are not tried.
    """
    total = _total(problem, cuts)
    tried = 0
    while tried < _EXCHANGES:
        for emptier, fuller in _promising(problem, cuts, marked):
            tried += 1
            candidate = _exchanged(problem, cuts, emptier, fuller)
            candidate = settle(
                problem, candidate, 0.25 * np.minimum(np.diff(candidate)[:-1], np.diff(candidate)[1:]), turns=1
            )
            candidate_total = _total(problem, candidate)
            if candidate_total < total * (1 - _SETTLED) - problem.rounding:
                cuts, total = candidate, candidate_total
                break
        else:
            break
    return settle(problem, cuts, 1e-2 * np.minimum(np.diff(cuts)[:-1], np.diff(cuts)[1:]))


def _promising(problem: CellCost, cuts: np.ndarray, marked: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return pairs of groups of cells, one that may lose a cut and one that may get it; the most promising first."""
    groups = np.searchsorted(marked, 0.5 * (cuts[:-1] + cuts[1:]))
    costs = _costs(problem, cuts)
    exchanges = []
    for loser in np.unique(groups):
        for winner in np.unique(groups):
            members, others = np.flatnonzero(groups == loser), np.flatnonzero(groups == winner)
            k, n = len(members), len(others)
            if loser != winner and k > 1:
                lost = costs[members].sum() * ((k / (k - 1)) ** 2 - 1)
                won = costs[others].sum() * (1 - (n / (n + 1)) ** 2)
                exchanges.append((lost - won, members, others))
    exchanges.sort(key=lambda pair: pair[0])
    return [(members, others) for loss, members, others in exchanges if loss < _HOPELESS * costs.sum()]


def _exchanged(problem: CellCost, cuts: np.ndarray, emptier: np.ndarray, fuller: np.ndarray) -> np.ndarray:
    """Return the cuts without the least useful one between two cells of `emptier`, and with the costliest of
    `fuller` halved.
    """
    pairs = emptier[:-1]
    sums = problem.sums(cuts)
    joined = problem.cost(cuts[pairs], cuts[pairs + 2], sums[:, pairs], sums[:, pairs + 2])
    costs = _costs(problem, cuts)
    gone = pairs[np.argmin(joined - costs[pairs] - costs[pairs + 1])] + 1
    halved = fuller[np.argmax(costs[fuller])]
    return np.sort(np.append(np.delete(cuts, gone), 0.5 * (cuts[halved] + cuts[halved + 1])))


def _costs(problem: CellCost, cuts: np.ndarray) -> np.ndarray:
    """Return the cost of each cell of a partition."""
    sums = problem.sums(cuts)
    return problem.cost(cuts[:-1], cuts[1:], sums[:, :-1], sums[:, 1:])


def _total(problem: CellCost, cuts: np.ndarray) -> float:
    return float(_costs(problem, cuts).sum())


def _rough(grid: Grid, cells: int) -> np.ndarray:
    """Return a good partition, found on every fourth point."""
    count = len(grid.places)
    if count < max(_FEWEST, 2 * _COARSE * cells):
        return np.unique(np.linspace(0, count - 1, cells + 1).round().astype(int))
    kept = np.unique(np.append(np.arange(0, count, _COARSE), count - 1))
    return kept[best_on_grid(Grid(grid.problem, grid.places[kept], grid.sums[:, kept]), cells)]


def _first_within(grid: Grid, high: np.ndarray, ceiling: float) -> np.ndarray:
    """Return, for each index, the least one from which the cell up to it costs at most `ceiling`, by bisection."""
    low, fits = np.zeros_like(high), high.copy()
    while (low < fits).any():
        middle = (low + fits) // 2
        within = grid.cost(middle, high) <= ceiling
        low, fits = np.where(within, low, middle + 1), np.where(within, middle, fits)
    return np.minimum(fits, np.maximum(high - 1, 0))


def _cheapest_places(problem: CellCost, tried: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return, for each cut, which of its tried places [cuts, choices] is on the cheapest path from one end to the
    other.
    """
    best, between, last = _cell_costs(problem, tried, ends)
    sources = []
    for costs in between:
        totals = best[:, None] + costs
        sources.append(np.argmin(totals, axis=0))
        best = np.min(totals, axis=0)
    chosen = [int(np.argmin(best + last))]
    for source in reversed(sources):
        chosen.append(int(source[chosen[-1]]))
    return np.array(chosen[::-1])
