"""Spend bytes that a run order leaves unused: keep values instead of recomputing them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import compress

import numpy as np

from .problem.liveness import Lives, RunOrder, lives_of, moments_of
from .problem.problem import Problem
from .problem.problem_arrays import Arrays, arrays_of, highest_between

_ROUNDS = 3
_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class _Omissions:
    """Second runs that may be left out, one per entry, the most worthwhile first.

    Without the run at `positions`, `sizes` more bytes stay alive from `starts` to `ends`. They are, for each of its
    `gaps`, a value of `gap_sizes` bytes that is dead after `gap_starts` until this run. If the run makes a view, the
    value stays alive until the view dies.
    """

    positions: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray
    gaps: tuple[range, ...]
    gap_starts: np.ndarray
    gap_sizes: np.ndarray


def polished(problem: Problem, order: RunOrder, peak_bytes: int) -> RunOrder:
    """Return the order without second runs whose results can stay alive under `peak_bytes` instead.

    Leaving out a second run saves its seconds. Its results then stay alive from the last reader before it to the next
    reader after it. That fits if every moment between has enough unused bytes. Runs with the most seconds per byte and
    moment come first. Runs that nothing reads any more are left out too. The peak stays at most the larger of the
    order's own and `peak_bytes`.
    """
    for _ in range(_ROUNDS):
        left_out = _left_out(problem, order, peak_bytes)
        if not left_out.any():
            return order
        order = without_idle_runs(problem, without_runs(order, left_out))
    return order


def _left_out(problem: Problem, order: RunOrder, peak_bytes: int) -> np.ndarray:
    """Return for each run whether it is left out; all of them fit together."""
    lives = lives_of(problem, order)
    moments = moments_of(problem, lives)
    omissions = _omissions(problem, lives)
    left_out = np.zeros(len(lives.runs), dtype=bool)
    pending = _fitting(omissions, np.arange(len(omissions.gaps)), moments, peak_bytes)
    while len(pending):
        # few fit once the bytes are spent: checking all at once is quicker than one by one
        for entry in pending[:_AT_ONCE].tolist():
            start, end = omissions.starts[entry], omissions.ends[entry]
            if moments[start + 1 : end + 1].max() + omissions.sizes[entry] <= peak_bytes:
                for gap in omissions.gaps[entry]:
                    moments[omissions.gap_starts[gap] + 1 : end + 1] += omissions.gap_sizes[gap]
                left_out[omissions.positions[entry]] = True
        pending = _fitting(omissions, pending[_AT_ONCE:], moments, peak_bytes)
    return left_out


def without_idle_runs(problem: Problem, order: RunOrder) -> RunOrder:
    """Return the order without second runs whose results nothing reads before they are recomputed."""
    lives = lives_of(problem, order)
    runs, recomputed = lives.runs.tolist(), lives.recomputed.tolist()
    idle = np.zeros(len(runs), dtype=bool)
    needed: set[int] = set()
    for position in range(len(runs) - 1, -1, -1):
        op = problem.ops[runs[position]]
        if recomputed[position] and needed.isdisjoint(op.makes):
            idle[position] = True
            continue
        needed.difference_update(op.makes)
        needed.update(op.reads)
    return without_runs(order, idle) if idle.any() else order


def _omissions(problem: Problem, lives: Lives) -> _Omissions:
    """Return the second runs whose results were alive before.

    Random operations are not among them: without a second run their state need not be recorded either, which would
    change moments elsewhere.
    """
    arrays, count = arrays_of(problem), len(lives.runs)
    second_runs = np.flatnonzero(lives.recomputed & (arrays.saved_seconds[lives.runs] > 0) & ~arrays.random[lives.runs])
    entry, value = arrays.makes.gather(lives.runs[second_runs])
    # the latest death of each value before it is recomputed
    deaths = np.sort(lives.dies * (count + 1) + lives.dies_at)
    latest = np.searchsorted(deaths, value * (count + 1) + second_runs[entry]) - 1
    has_gap = (latest >= 0) & (deaths[latest] // (count + 1) == value)
    entry, gap_starts, gap_sizes = (
        entry[has_gap],
        deaths[latest[has_gap]] % (count + 1),
        arrays.size_bytes[value[has_gap]],
    )
    # a value that dies by being changed in place would be copied instead, so that its bytes count there already
    gap_starts -= arrays.reuses[lives.runs[gap_starts]] == value[has_gap]
    sizes = np.bincount(entry, weights=gap_sizes, minlength=len(second_runs)).astype(np.int64)
    starts = second_runs.copy()
    np.minimum.at(starts, entry, gap_starts)
    ends = _ends(arrays, lives, second_runs)
    held_bytes = np.bincount(entry, weights=gap_sizes * (ends[entry] - gap_starts), minlength=len(second_runs))
    worth = arrays.saved_seconds[lives.runs[second_runs]] / np.maximum(held_bytes, 1)
    chosen = np.flatnonzero(starts < second_runs)
    chosen = chosen[np.lexsort((second_runs[chosen], -worth[chosen]))]
    bounds = np.searchsorted(entry, np.arange(len(second_runs) + 1)).tolist()
    gaps = tuple(range(bounds[i], bounds[i + 1]) for i in chosen.tolist())
    return _Omissions(second_runs[chosen], starts[chosen], ends[chosen], sizes[chosen], gaps, gap_starts, gap_sizes)


def _ends(arrays: Arrays, lives: Lives, second_runs: np.ndarray) -> np.ndarray:
    """Return the last positions at which leaving out second runs takes more bytes: for a view, where it dies."""
    ends = second_runs.copy()
    views = np.flatnonzero(arrays.is_view[lives.runs[second_runs]])
    if len(views):
        span = len(lives.runs) + 1
        deaths = np.sort(lives.dies * span + lives.dies_at)
        entry, value = arrays.makes.gather(lives.runs[second_runs[views]])
        ends[views[entry]] = deaths[np.searchsorted(deaths, value * span + second_runs[views[entry]])] % span
    return ends


def _fitting(omissions: _Omissions, entries: np.ndarray, moments: np.ndarray, peak_bytes: int) -> np.ndarray:
    """Return those of some entries that fit by themselves."""
    highest = highest_between(moments, omissions.starts[entries] + 1, omissions.ends[entries] + 1)
    return entries[highest + omissions.sizes[entries] <= peak_bytes]


def without_runs(order: RunOrder, left_out: np.ndarray) -> RunOrder:
    """Return the order without the runs at these positions."""
    stays = iter((~left_out).tolist())
    return tuple(tuple(compress(segment, stays)) for segment in order)
