"""A problem as numpy arrays, for the computations that run over every operation many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import fsum

import numpy as np

from .problem import Op, Problem


@dataclass(frozen=True)
class Ragged:
    """Lists of numbers, one per operation, end to end: list i is flat[start[i] : start[i] + count[i]]."""

    start: np.ndarray
    count: np.ndarray
    flat: np.ndarray

    @staticmethod
    def of(lists: Sequence[Sequence[int]]) -> Ragged:
        """Return the lists laid end to end."""
        count = np.array([len(numbers) for numbers in lists], dtype=np.int64)
        flat = np.array([number for numbers in lists for number in numbers], dtype=np.int64)
        return Ragged(np.cumsum(count) - count, count, flat)

    def gather(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (position in `chosen`, number) for every number in the chosen lists, in order."""
        count = self.count[chosen]
        position = np.repeat(np.arange(len(chosen)), count)
        within = np.arange(len(position)) - np.repeat(np.cumsum(count) - count, count)
        return position, self.flat[self.start[chosen][position] + within]


@dataclass(frozen=True, eq=False)
class Arrays:
    """The arrays of a problem that liveness needs. Bytes are int64; one entry per operation unless noted."""

    reads: Ragged  # distinct values, resident ones left out
    makes: Ragged
    seconds: np.ndarray
    momentary_bytes: np.ndarray  # the most bytes allocated while the operation runs
    random: np.ndarray
    recomputes: np.ndarray  # an earlier operation makes the same value: decoding only (`EncodedProblem`)
    is_view: np.ndarray  # its result is a view of the values that it reads
    view_bytes: np.ndarray  # and the additional bytes of the view
    saved_seconds: np.ndarray  # saved by leaving out a second run; for a view with the run that made the viewed value
    reuses: np.ndarray  # the value that it changes in place if that dies, -1 if there is none
    size_bytes: np.ndarray  # per value
    held: np.ndarray  # per value


@lru_cache(maxsize=8)
def arrays_of(problem: Problem) -> Arrays:
    """Return the arrays of a problem, computed once."""
    ops, values = problem.ops, problem.values
    size_bytes = [value.size_bytes for value in values]
    made_bytes = [sum(size_bytes[v] for v in op.makes) if op.view_bytes is None else op.view_bytes for op in ops]
    reads = [[v for v in dict.fromkeys(op.reads) if not values[v].resident] for op in ops]
    return Arrays(
        reads=Ragged.of(reads),
        makes=Ragged.of([op.makes for op in ops]),
        seconds=np.array([op.seconds for op in ops], dtype=float),
        momentary_bytes=np.array([max(op.working_bytes, made) for op, made in zip(ops, made_bytes, strict=True)]),
        random=np.array([op.random for op in ops], dtype=bool),
        recomputes=np.array(_find_recomputing(problem), dtype=bool),
        is_view=np.array([op.view_bytes is not None for op in ops], dtype=bool),
        view_bytes=np.array([op.view_bytes or 0 for op in ops], dtype=np.int64),
        saved_seconds=np.array([_saved_seconds(problem, op) for op in ops], dtype=float),
        reuses=np.array([-1 if op.reuses is None else op.reuses for op in ops], dtype=np.int64),
        size_bytes=np.array(size_bytes, dtype=np.int64),
        held=np.array([value.held for value in values], dtype=bool),
    )


def _saved_seconds(problem: Problem, op: Op) -> float:
    if op.view_bytes is None:
        return op.seconds
    return op.seconds + fsum(problem.ops[problem.maker[value]].seconds for value in op.reads)


def _find_recomputing(problem: Problem) -> list[bool]:
    made: set[int] = set()
    recomputing = []
    for op in problem.ops:
        recomputing.append(not made.isdisjoint(op.makes))
        made.update(op.makes)
    return recomputing


def highest_between(numbers: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the maxima of numbers[start : end] for pairs with start < end, from maxima over powers of two."""
    level = np.frexp(ends - starts)[1] - 1  # the largest power of two that fits
    best = np.empty(len(starts), dtype=numbers.dtype)
    powers = numbers
    for power in range(int(level.max(initial=0)) + 1):
        here, width = level == power, 1 << power
        best[here] = np.maximum(powers[starts[here]], powers[ends[here] - width])
        powers = np.maximum(powers[:-width], powers[width:])
    return best


def unbeaten_rows(rows: np.ndarray) -> list[int]:
    """Return the numbers of the rows for which no earlier row is as small in every column."""
    best: list[int] = []
    for number, row in enumerate(rows):
        if not np.any(np.all(rows[best] <= row, axis=1)):
            best.append(number)
    return best
