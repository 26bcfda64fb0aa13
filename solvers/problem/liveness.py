"""Turn a run order into a schedule, in which every value is freed as early as the order allows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, chain
from math import fsum

import numpy as np

from .problem import Problem
from .problem_arrays import Arrays, arrays_of
from .schedule import Forget, Free, Instruction, Record, Run, Schedule, Segment

# The operations that each segment runs, in order; a second run rematerializes. Segments as in `Schedule`.
RunOrder = tuple[tuple[int, ...], ...]
# Values kept encoded between forward and backward, with the numbers of their encodings.
Choice = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Forecast:
    """The result of `simulate` for a run order, computed at once instead of instruction by instruction.

    peak_bytes: as in `Timeline`.
    seconds: as in `Timeline`.
    peak_run: the position of the run with the highest moment, counted through all segments; -1 if nothing runs.
    segment_peaks: the highest moment of each segment in bytes, 0 if it runs nothing.
    """

    peak_bytes: int
    seconds: float
    peak_run: int
    segment_peaks: np.ndarray


@dataclass(frozen=True, eq=False)
class Candidate:
    """A run order that a solver yields.

    description: a few words on the values that it keeps.
    forecast: its forecast, if that is known.
    choice: if not empty, the order is one of the problem with these values encoded (`encoded_problem_of`).
    """

    description: str
    order: RunOrder
    forecast: Forecast | None = None
    choice: Choice = ()


def trace_order(problem: Problem) -> RunOrder:
    """Return the order of the trace, with every operation once."""
    return problem.segment_operations


@dataclass(frozen=True, eq=False)
class Lives:
    """The births and deaths of the values of a run order. Positions count runs through all segments.

    A value dies after the last read before its maker runs again, or after its last read if the maker does not. If
    nothing reads it before then, it dies right after its maker's run. Held values never die. A reader of a view also
    reads the viewed value.
    """

    runs: np.ndarray  # operation run at each position
    recomputed: np.ndarray  # per position: whether the operation has run before, or recomputes the result of another
    dies_at: np.ndarray  # positions of deaths
    dies: np.ndarray  # the values that die there
    dies_bytes: np.ndarray  # and their bytes
    born_at: np.ndarray  # positions of births
    born: np.ndarray  # the values that become alive there
    born_bytes: np.ndarray  # and their bytes
    recorded_at: np.ndarray  # positions of first runs of random operations that run again
    forgotten_at: np.ndarray  # positions of their last runs


def lives_of(problem: Problem, order: RunOrder) -> Lives:
    """Return each value's births and deaths, found by sorting its reads and makes by position."""
    arrays = arrays_of(problem)
    runs = np.array(list(chain.from_iterable(order)), dtype=np.int64)
    position = np.arange(len(runs))
    first = np.zeros(len(problem.ops), dtype=np.int64)
    first[runs[::-1]] = position[::-1]
    last = np.zeros(len(problem.ops), dtype=np.int64)
    last[runs] = position
    recomputed = (first[runs] != position) | arrays.recomputes[runs]

    read_at, read = arrays.reads.gather(runs)
    made_at, made = arrays.makes.gather(runs)
    span = 2 * len(runs) + 2
    event = np.sort(np.concatenate((read * span + 2 * read_at, made * span + 2 * made_at + 1)))
    if arrays.is_view[runs].any():
        event = _with_reads_of_views(arrays, runs, event, span)
    value, when = event // span, event % span
    is_make = when & 1 == 1
    life_bytes = _life_bytes(arrays, runs, value, when >> 1, is_make)
    ends_life = np.append((value[1:] != value[:-1]) | is_make[1:], np.ones(min(len(event), 1), dtype=bool))
    dies = ends_life & ~arrays.held[value]
    born = is_make & ~(arrays.held[value] & recomputed[when >> 1])

    redrawn = np.unique(runs[recomputed & arrays.random[runs]]) if recomputed.any() else runs[:0]
    return Lives(
        runs=runs,
        recomputed=recomputed,
        dies_at=when[dies] >> 1,
        dies=value[dies],
        dies_bytes=life_bytes[dies],
        born_at=when[born] >> 1,
        born=value[born],
        born_bytes=life_bytes[born],
        recorded_at=first[redrawn],
        forgotten_at=last[redrawn],
    )


def _with_reads_of_views(arrays: Arrays, runs: np.ndarray, event: np.ndarray, span: int) -> np.ndarray:
    """Return sorted events with a read of the viewed value added for each read of a view of it."""
    position, is_make = event % span >> 1, event & 1 == 1
    begin = _beginnings(is_make)
    reads_view = np.flatnonzero(~is_make & is_make[begin] & arrays.is_view[runs[position[begin]]])
    entry, viewed = arrays.reads.gather(runs[position[begin[reads_view]]])
    return np.sort(np.concatenate((event, viewed * span + 2 * position[reads_view[entry]])))


def _life_bytes(
    arrays: Arrays, runs: np.ndarray, value: np.ndarray, position: np.ndarray, is_make: np.ndarray
) -> np.ndarray:
    """Return the bytes of each event's value in the life that the event belongs to; events are sorted."""
    size_bytes = arrays.size_bytes[value]
    if not arrays.is_view[runs].any():
        return size_bytes
    begin = _beginnings(is_make)
    maker = runs[position[begin]]
    return np.where(is_make[begin] & arrays.is_view[maker], arrays.view_bytes[maker], size_bytes)


def _beginnings(is_make: np.ndarray) -> np.ndarray:
    """Return for each event, sorted by value and position, the event that begins its life."""
    return np.maximum.accumulate(np.where(is_make, np.arange(len(is_make)), 0))


def forecast(problem: Problem, order: RunOrder) -> Forecast:
    """Return peak and time of a run order, equal to those of `simulate` for its schedule."""
    arrays, lives = arrays_of(problem), lives_of(problem, order)
    count = len(lives.runs)
    if not count:
        return Forecast(problem.resident_bytes, 0.0, -1, np.zeros(len(order), dtype=np.int64))
    moments = moments_of(problem, lives)
    peak_run = int(moments.argmax())
    segment_peaks = np.zeros(len(order), dtype=np.int64)
    lengths = np.array([len(segment) for segment in order])
    starts, filled = np.cumsum(lengths) - lengths, lengths > 0
    segment_peaks[filled] = np.maximum.reduceat(moments, starts[filled])
    peak_bytes = max(int(moments[peak_run]), problem.resident_bytes)
    return Forecast(peak_bytes, fsum(arrays.seconds[lives.runs].tolist()), peak_run, segment_peaks)


def moments_of(problem: Problem, lives: Lives) -> np.ndarray:
    """Return the bytes allocated at the fullest moment of each run, everything counted."""
    arrays = arrays_of(problem)
    recorded = np.bincount(lives.recorded_at, minlength=len(lives.runs)) * problem.state_bytes
    moments = problem.resident_bytes + _live_before(lives, recorded, problem.state_bytes)
    moments += arrays.momentary_bytes[lives.runs]
    moments += problem.state_bytes * (lives.recomputed & arrays.random[lives.runs])
    changed = np.flatnonzero(arrays.reuses[lives.runs[lives.dies_at]] == lives.dies)
    moments[lives.dies_at[changed]] -= lives.dies_bytes[changed]
    return moments


def _live_before(lives: Lives, recorded: np.ndarray, state_bytes: int) -> np.ndarray:
    """Return the bytes alive when each run begins, beyond the resident ones; its own recorded state included."""
    count = len(lives.runs)
    # bincount adds in floats, which are exact up to 2**53 bytes
    born = np.bincount(lives.born_at, weights=lives.born_bytes, minlength=count)
    died = np.bincount(lives.dies_at, weights=lives.dies_bytes, minlength=count)
    forgotten = np.bincount(lives.forgotten_at, minlength=count) * state_bytes
    after = np.cumsum((born - died).astype(np.int64) + recorded - forgotten)
    before = np.empty(count, dtype=np.int64)
    before[0], before[1:] = 0, after[:-1]
    return before + recorded


def schedule_of(problem: Problem, order: RunOrder) -> Schedule:
    """Return the schedule of a run order, with states recorded as late and values freed as early as possible.

    Frees after one run stand in the order in which the operation reads and makes, so that segments equal up to renaming
    stay equal.
    """
    lives = lives_of(problem, order)
    dying = _grouped(zip(lives.dies_at.tolist(), lives.dies.tolist(), strict=True))
    recorded, forgotten = set(lives.recorded_at.tolist()), set(lives.forgotten_at.tolist())
    instructions: list[Instruction] = []
    segments: list[Segment] = []
    blocks = range(len(problem.block_classes))
    position = 0
    for block, segment in zip([*blocks, *reversed(blocks)], order, strict=True):
        start = len(instructions)
        for op in segment:
            if position in recorded:
                instructions.append(Record(op))
            instructions.append(Run(op))
            if position in forgotten:
                instructions.append(Forget(op))
            if position in dying:
                touched = dict.fromkeys((*problem.ops[op].reads, *problem.ops[op].makes))
                viewed = sorted(dying[position] - touched.keys())  # values that the operation reads through a view
                instructions.extend(Free(value) for value in (*touched, *viewed) if value in dying[position])
            position += 1
        segments.append(Segment(block, start, len(instructions)))
    return Schedule(tuple(instructions), tuple(segments))


def _grouped(pairs: Iterable[tuple[int, int]]) -> dict[int, set[int]]:
    groups: dict[int, set[int]] = {}
    for key, member in pairs:
        groups.setdefault(key, set()).add(member)
    return groups


def bytes_at(spans: Iterable[tuple[int, int, int]], positions: int) -> list[int]:
    """Return for each position the bytes of all spans over it.

    spans: (first position, position after the last, bytes).
    """
    change = [0] * positions
    for begin, end, size_bytes in spans:
        change[begin] += size_bytes
        change[end] -= size_bytes
    return list(accumulate(change))
