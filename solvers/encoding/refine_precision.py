"""Lower the error of a schedule with the unused bytes of its budget: codes of more bits where they fit.

Of schedules that take equally long the one with the lowest error is chosen: many values encoded in 8 bits have a much
lower error than a few in 3 bits next to unencoded others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..candidates.pareto import Rated
from ..problem.errors import ScheduleError
from ..problem.problem import EncodingOption, Problem
from ..problem.schedule import Decode, Encode, FreeCode, Instruction, Schedule
from ..problem.simulate import simulate
from .decode_order import encoded_schedule

_SECONDS_SHARE = 1e-3  # share of the step: extra time for all exchanges together, or for a slower candidate
_MOST_TRIED = 24


@dataclass
class _Code:
    """The code of a value by an encoding, alive from one instruction to another."""

    value: int
    number: int
    start: int
    stop: int


def with_lower_error(problem: Problem, schedule: Schedule, budget_bytes: int) -> Schedule:
    """Return the schedule with approximate codes exchanged for ones of lower error, the most error per byte first.

    The order of runs does not change.

    budget_bytes: the highest peak allowed.

    Cost: two simulations, and for each code and each encoding of its value an addition for each instruction while it is
    alive.
    """
    numbers = _lower_error_numbers(problem, schedule, budget_bytes)
    if not numbers:
        return schedule
    refined = _exchange_codes(schedule, numbers)
    try:
        return refined if simulate(problem, refined).peak_bytes <= budget_bytes else schedule
    except ScheduleError:
        return schedule


def _lower_error_numbers(problem: Problem, schedule: Schedule, budget_bytes: int) -> dict[int, int]:
    """Return the number of the encoding of lower error for each value with an approximate code."""
    codes = _codes(problem, schedule)
    if not codes:
        return {}
    room = budget_bytes - np.array(simulate(problem, schedule).moment_bytes, dtype=np.int64)
    remaining_seconds = _SECONDS_SHARE * problem.seconds
    for _, code, number in sorted(_exchanges(problem, codes), key=lambda exchange: -exchange[0]):
        before, after = (problem.values[code.value].encodings[n] for n in (code.number, number))
        more_seconds = after.seconds - before.seconds
        if after.error >= before.error or more_seconds > remaining_seconds:
            continue
        available = room[code.start : code.stop]
        if (available >= _more_bytes(before, after)).all():
            available -= after.size_bytes - before.size_bytes
            remaining_seconds -= max(more_seconds, 0.0)
            code.number = number
    return {code.value: code.number for code in codes}


def lowest_error(problem: Problem, fitting: Sequence[Rated], budget_bytes: int) -> Rated:
    """Return, of candidates that are as fast as the fastest or hardly slower, the one with the lowest error.

    fitting: candidates that fit the budget, the last of them the fastest.

    Cost: a simulation and `_lower_error_numbers` for two dozen candidates at most.
    """
    fastest = fitting[-1]
    if not fastest.choice or problem.error_of(encoded_schedule(problem, fastest.choice, fastest.order).encoded) == 0:
        return fastest
    limit = fastest.seconds + _SECONDS_SHARE * problem.seconds
    alike = [candidate for candidate in fitting if candidate.seconds <= limit]
    tried = [alike[place] for place in sorted({len(alike) * n // _MOST_TRIED for n in range(_MOST_TRIED)})]

    def error(candidate: Rated) -> float:
        schedule = encoded_schedule(problem, candidate.choice, candidate.order)
        numbers = _lower_error_numbers(problem, schedule, budget_bytes)
        return problem.error_of((value, numbers.get(value, number)) for value, number in schedule.encoded)

    return min((fastest, *tried), key=error)


def _codes(problem: Problem, schedule: Schedule) -> list[_Code]:
    """Return the approximate codes of values that have only one."""
    codes: dict[int, _Code] = {}
    mixed: set[int] = set()
    for index, instruction in enumerate(schedule.instructions):
        if not isinstance(instruction, (Encode, Decode, FreeCode)):
            continue
        if problem.values[instruction.value].encodings[instruction.encoding].fidelity != "approximate":
            mixed.add(instruction.value)
        code = codes.setdefault(instruction.value, _Code(instruction.value, instruction.encoding, index, index))
        code.stop = index + 1
        if code.number != instruction.encoding:
            mixed.add(instruction.value)
    return [code for value, code in codes.items() if value not in mixed]


def _exchanges(problem: Problem, codes: list[_Code]) -> Iterator[tuple[float, _Code, int]]:
    """Yield (error per byte, code, number of an encoding) for every exchange that lowers the error."""
    for code in codes:
        encodings = problem.values[code.value].encodings
        before = encodings[code.number]
        for number, after in enumerate(encodings):
            alike = after.is_read_itself == before.is_read_itself  # otherwise the code would be freed too early
            if alike and after.error < before.error and after.size_bytes < problem.values[code.value].size_bytes:
                yield (before.error - after.error) / max(after.size_bytes - before.size_bytes, 1), code, number


def _more_bytes(before: EncodingOption, after: EncodingOption) -> int:
    """Return how much the fullest moment may rise if one code is replaced by the other."""
    more = after.size_bytes - before.size_bytes
    encoding = after.encode_working_bytes - before.encode_working_bytes
    decoding = after.decode_working_bytes - before.decode_working_bytes
    decoded = (after.read_itself_bytes or 0) - (before.read_itself_bytes or 0)
    return max(more, encoding, more + decoding, more + decoded)


def _exchange_codes(schedule: Schedule, numbers: dict[int, int]) -> Schedule:
    def exchange(instruction: Instruction) -> Instruction:
        if isinstance(instruction, (Encode, Decode, FreeCode)) and instruction.value in numbers:
            return replace(instruction, encoding=numbers[instruction.value])
        return instruction

    return replace(schedule, instructions=tuple(map(exchange, schedule.instructions)))
