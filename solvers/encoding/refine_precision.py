"""Smaller errors for the bytes that a schedule leaves of its budget: codes of more bits where there is room.

And of schedules that take equally long the one with which errors come out smallest: more values encoded in 8 bits are
far more exact than a few in 3 bits beside others kept whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..pareto import Rated
from ..problem.errors import ScheduleError
from ..problem.problem import EncodingOption, Problem
from ..problem.schedule import Decode, Encode, FreeCode, Instruction, Schedule
from ..problem.simulate import simulate
from .decode_order import encoded_schedule

_SECONDS_SHARE = 1e-3  # of the step, that all exchanges together may take longer, or another candidate than the fastest
_MOST_TRIED = 24


@dataclass
class _Code:
    """The code of a value by an encoding, which is there from one instruction to another."""

    value: int
    number: int
    start: int
    stop: int


def with_lower_error(problem: Problem, schedule: Schedule, budget_bytes: int) -> Schedule:
    """The schedule with approximate codes exchanged for more exact ones, the most error per byte first, as they fit.

    budget_bytes: what it may peak at. What runs when stays as it is. Cost: two simulations, and for each code and each
    of its value's encodings an addition for each instruction while it is there.
    """
    numbers = _gentler_numbers(problem, schedule, budget_bytes)
    if not numbers:
        return schedule
    found = _exchanged(schedule, numbers)
    try:
        return found if simulate(problem, found).peak_bytes <= budget_bytes else schedule
    except ScheduleError:
        return schedule


def _gentler_numbers(problem: Problem, schedule: Schedule, budget_bytes: int) -> dict[int, int]:
    """For each value with an approximate code the number of the encoding that it may have instead."""
    codes = _codes(problem, schedule)
    if not codes:
        return {}
    room = budget_bytes - np.array(simulate(problem, schedule).moment_bytes, dtype=np.int64)
    left_seconds = _SECONDS_SHARE * problem.seconds
    for _, code, number in sorted(_exchanges(problem, codes), key=lambda one: -one[0]):
        before, after = (problem.values[code.value].encodings[n] for n in (code.number, number))
        more_seconds = after.seconds - before.seconds
        if after.error >= before.error or more_seconds > left_seconds:
            continue
        while_there = room[code.start : code.stop]
        if (while_there >= _more_bytes(before, after)).all():
            while_there -= after.size_bytes - before.size_bytes
            left_seconds -= max(more_seconds, 0.0)
            code.number = number
    return {code.value: code.number for code in codes}


def lowest_error(problem: Problem, fitting: Sequence[Rated], budget_bytes: int) -> Rated:
    """Of candidates that fit a budget, of which the last is the fastest, one that is hardly slower and errs least.

    Cost: a simulation, and what `gentler` adds, for two dozen of them at most.
    """
    fastest = fitting[-1]
    if not fastest.choice or problem.error_of(encoded_schedule(problem, fastest.choice, fastest.order).encoded) == 0:
        return fastest
    limit = fastest.seconds + _SECONDS_SHARE * problem.seconds
    alike = [one for one in fitting if one.seconds <= limit]
    tried = [alike[place] for place in sorted({len(alike) * n // _MOST_TRIED for n in range(_MOST_TRIED)})]

    def error(one: Rated) -> float:
        schedule = encoded_schedule(problem, one.choice, one.order)
        numbers = _gentler_numbers(problem, schedule, budget_bytes)
        return problem.error_of((value, numbers.get(value, number)) for value, number in schedule.encoded)

    return min((fastest, *tried), key=error)


def _codes(problem: Problem, schedule: Schedule) -> list[_Code]:
    """The approximate codes of values that have one alone."""
    found: dict[int, _Code] = {}
    several: set[int] = set()
    for index, one in enumerate(schedule.instructions):
        if not isinstance(one, (Encode, Decode, FreeCode)):
            continue
        if problem.values[one.value].encodings[one.encoding].fidelity != "approximate":
            several.add(one.value)
        code = found.setdefault(one.value, _Code(one.value, one.encoding, index, index))
        code.stop = index + 1
        if code.number != one.encoding:
            several.add(one.value)
    return [code for value, code in found.items() if value not in several]


def _exchanges(problem: Problem, codes: list[_Code]) -> Iterator[tuple[float, _Code, int]]:
    """(error per byte, code, number of an encoding) for all that would make errors smaller."""
    for code in codes:
        encodings = problem.values[code.value].encodings
        before = encodings[code.number]
        for number, after in enumerate(encodings):
            alike = after.is_read_itself == before.is_read_itself  # or else the code stays too short
            if alike and after.error < before.error and after.size_bytes < problem.values[code.value].size_bytes:
                yield (before.error - after.error) / max(after.size_bytes - before.size_bytes, 1), code, number


def _more_bytes(before: EncodingOption, after: EncodingOption) -> int:
    """By how much the fullest moment may rise while one code is made, kept or decoded and not the other."""
    more = after.size_bytes - before.size_bytes
    encoding = after.encode_working_bytes - before.encode_working_bytes
    decoding = after.decode_working_bytes - before.decode_working_bytes
    decoded = (after.decoded_bytes or 0) - (before.decoded_bytes or 0)
    return max(more, encoding, more + decoding, more + decoded)


def _exchanged(schedule: Schedule, numbers: dict[int, int]) -> Schedule:
    def told(one: Instruction) -> Instruction:
        if isinstance(one, (Encode, Decode, FreeCode)) and one.value in numbers:
            return replace(one, encoding=numbers[one.value])
        return one

    return replace(schedule, instructions=tuple(map(told, schedule.instructions)))
