"""Spends bytes that a run order leaves unused: what need not run again is kept from before instead."""

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

    Left out, the run at `positions` keeps `sizes` bytes more alive from `starts` to `ends`: for each of its `gaps` a
    value of `gap_sizes` bytes that is dead after `gap_starts` until this run; where that makes a view, until it dies.
    """

    positions: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray
    gaps: tuple[range, ...]
    gap_starts: np.ndarray
    gap_sizes: np.ndarray


def polished(problem: Problem, order: RunOrder, peak_bytes: int) -> RunOrder:
    """The order without second runs whose results can stay alive under `peak_bytes` instead.

    Left out, a second run saves its seconds; what it makes then lives on from its last reader before to its next one
    after, which fits if every moment between leaves as many bytes. The most seconds per byte and moment come first.
    What nothing reads any more is left out too. The peak stays at most the larger of the order's own and `peak_bytes`.
    """
    for _ in range(_ROUNDS):
        left_out = _left_out(problem, order, peak_bytes)
        if not left_out.any():
            return order
        order = without_idle_runs(problem, without_runs(order, left_out))
    return order


def _left_out(problem: Problem, order: RunOrder, peak_bytes: int) -> np.ndarray:
    """For each run whether it may be left out, together with the others."""
    lives = lives_of(problem, order)
    moments = moments_of(problem, lives)
    omissions = _omissions(problem, lives)
    left_out = np.zeros(len(lives.runs), dtype=bool)
    pending = _fitting(omissions, np.arange(len(omissions.gaps)), moments, peak_bytes)
    while len(pending):
        # few fit once the bytes are spent: telling that for all at once is quicker than one by one
        for entry in pending[:_AT_ONCE].tolist():
            start, end = omissions.starts[entry], omissions.ends[entry]
            if moments[start + 1 : end + 1].max() + omissions.sizes[entry] <= peak_bytes:
                for gap in omissions.gaps[entry]:
                    moments[omissions.gap_starts[gap] + 1 : end + 1] += omissions.gap_sizes[gap]
                left_out[omissions.positions[entry]] = True
        pending = _fitting(omissions, pending[_AT_ONCE:], moments, peak_bytes)
    return left_out


def without_idle_runs(problem: Problem, order: RunOrder) -> RunOrder:
    """The order without second runs that make nothing that is read before it is made once more."""
    lives = lives_of(problem, order)
    runs, again = lives.runs.tolist(), lives.again.tolist()
    idle = np.zeros(len(runs), dtype=bool)
    wanted: set[int] = set()
    for position in range(len(runs) - 1, -1, -1):
        op = problem.ops[runs[position]]
        if again[position] and wanted.isdisjoint(op.makes):
            idle[position] = True
            continue
        wanted.difference_update(op.makes)
        wanted.update(op.reads)
    return without_runs(order, idle) if idle.any() else order


def _omissions(problem: Problem, lives: Lives) -> _Omissions:
    """Second runs whose results were alive before.

    Random operations are not among them: without a second run their state need not be recorded either, which would
    change moments elsewhere.
    """
    arrays, count = arrays_of(problem), len(lives.runs)
    tried = np.flatnonzero(lives.again & (arrays.saved_seconds[lives.runs] > 0) & ~arrays.random[lives.runs])
    entry, value = arrays.makes.gather(lives.runs[tried])
    # the latest death of each value before it is made again
    deaths = np.sort(lives.dies * (count + 1) + lives.dies_at)
    latest = np.searchsorted(deaths, value * (count + 1) + tried[entry]) - 1
    found = (latest >= 0) & (deaths[latest] // (count + 1) == value)
    entry, gap_starts, gap_sizes = entry[found], deaths[latest[found]] % (count + 1), arrays.size_bytes[value[found]]
    # what dies by being changed in place would be copied instead, so that its bytes count there already
    gap_starts -= arrays.reuses[lives.runs[gap_starts]] == value[found]
    sizes = np.bincount(entry, weights=gap_sizes, minlength=len(tried)).astype(np.int64)
    starts = tried.copy()
    np.minimum.at(starts, entry, gap_starts)
    ends = _ends(arrays, lives, tried)
    held_bytes = np.bincount(entry, weights=gap_sizes * (ends[entry] - gap_starts), minlength=len(tried))
    worth = arrays.saved_seconds[lives.runs[tried]] / np.maximum(held_bytes, 1)
    chosen = np.flatnonzero(starts < tried)
    chosen = chosen[np.lexsort((tried[chosen], -worth[chosen]))]
    bounds = np.searchsorted(entry, np.arange(len(tried) + 1)).tolist()
    gaps = tuple(range(bounds[i], bounds[i + 1]) for i in chosen.tolist())
    return _Omissions(tried[chosen], starts[chosen], ends[chosen], sizes[chosen], gaps, gap_starts, gap_sizes)


def _ends(arrays: Arrays, lives: Lives, tried: np.ndarray) -> np.ndarray:
    """Until when what second runs make takes more bytes if they are left out: of a view as long as it lives."""
    ends = tried.copy()
    views = np.flatnonzero(arrays.is_view[lives.runs[tried]])
    if len(views):
        span = len(lives.runs) + 1
        deaths = np.sort(lives.dies * span + lives.dies_at)
        entry, value = arrays.makes.gather(lives.runs[tried[views]])
        ends[views[entry]] = deaths[np.searchsorted(deaths, value * span + tried[views[entry]])] % span
    return ends


def _fitting(omissions: _Omissions, entries: np.ndarray, moments: np.ndarray, peak_bytes: int) -> np.ndarray:
    """Those of some entries that fit by themselves."""
    highest = highest_between(moments, omissions.starts[entries] + 1, omissions.ends[entries] + 1)
    return entries[highest + omissions.sizes[entries] <= peak_bytes]


def without_runs(order: RunOrder, left_out: np.ndarray) -> RunOrder:
    """The order without the runs at these positions."""
    stays = iter((~left_out).tolist())
    return tuple(tuple(compress(segment, stays)) for segment in order)
