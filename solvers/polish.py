"""Spends bytes that a run order leaves unused: what need not run again is kept from before instead."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from .arrays import arrays_of
from .liveness import Lives, RunOrder, lives_of, moments_of
from .problem import Problem

_ROUNDS = 3


@dataclass(frozen=True)
class _Omission:
    """A second run that may be left out: `gaps` are (value, position after which it is dead until this run)."""

    position: int
    gaps: tuple[tuple[int, int], ...]
    bytes: int
    seconds_per_byte: float


def polished(problem: Problem, order: RunOrder, peak_bytes: int) -> RunOrder:
    """The order without second runs whose results can stay alive under `peak_bytes` instead.

    Left out, a second run saves its seconds; what it makes then lives on from its last reader before to its next one
    after, which fits if every moment between leaves as many bytes. The most seconds per byte and moment come first.
    What nothing reads any more is left out too. The peak stays at most the larger of the order's own and `peak_bytes`.
    """
    for _ in range(_ROUNDS):
        lives = lives_of(problem, order)
        moments = moments_of(problem, lives)
        left_out = np.zeros(len(lives.runs), dtype=bool)
        for omission in _omissions(problem, lives):
            start = min(begin for _, begin in omission.gaps)
            if moments[start + 1 : omission.position + 1].max() + omission.bytes <= peak_bytes:
                for value, begin in omission.gaps:
                    moments[begin + 1 : omission.position + 1] += problem.values[value].size_bytes
                left_out[omission.position] = True
        if not left_out.any():
            return order
        order = without_idle_runs(problem, _without(order, left_out))
    return order


def without_idle_runs(problem: Problem, order: RunOrder) -> RunOrder:
    """The order without second runs that make nothing that is read before it is made once more."""
    lives = lives_of(problem, order)
    idle = np.zeros(len(lives.runs), dtype=bool)
    wanted: set[int] = set()
    for position in range(len(lives.runs) - 1, -1, -1):
        op = problem.ops[lives.runs[position]]
        if lives.again[position] and wanted.isdisjoint(op.makes):
            idle[position] = True
            continue
        wanted.difference_update(op.makes)
        wanted.update(op.reads)
    return _without(order, idle) if idle.any() else order


def _omissions(problem: Problem, lives: Lives) -> list[_Omission]:
    """Second runs that might be left out, the most worthwhile first.

    Random operations are not among them: without a second run their state need not be recorded either, which would
    change moments elsewhere.
    """
    seconds = arrays_of(problem).seconds
    deaths: defaultdict[int, list[int]] = defaultdict(list)
    by_position = np.argsort(lives.dies_at, kind="stable")
    for position, value in zip(lives.dies_at[by_position].tolist(), lives.dies[by_position].tolist(), strict=True):
        deaths[value].append(position)
    found = []
    for position in np.flatnonzero(lives.again & (seconds[lives.runs] > 0)).tolist():
        index = int(lives.runs[position])
        op = problem.ops[index]
        latest = {value: bisect_left(deaths[value], position) - 1 for value in op.makes}
        gaps = tuple((value, deaths[value][at]) for value, at in latest.items() if at >= 0)
        if gaps and not op.random:
            sizes = [problem.values[value].size_bytes for value, _ in gaps]
            held_bytes = sum(size * (position - begin) for size, (_, begin) in zip(sizes, gaps, strict=True))
            found.append(_Omission(position, gaps, sum(sizes), seconds[index] / max(held_bytes, 1)))
    return sorted(found, key=lambda omission: (-omission.seconds_per_byte, omission.position))


def _without(order: RunOrder, left_out: np.ndarray) -> RunOrder:
    """The order without the runs at these positions."""
    kept, position = [], 0
    for segment in order:
        kept.append(tuple(op for at, op in enumerate(segment, position) if not left_out[at]))
        position += len(segment)
    return tuple(kept)
