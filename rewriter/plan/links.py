"""Joins neighbouring blocks to one node of autograd's graph, a link, where the step's peak stays what it is.

Each node costs some 25 microseconds in forward and as much in backward. What a link's backward returns, autograd takes
over when all of it has run. A gradient that becomes `.grad` is there to the end anyway; one that is added to a `.grad`
is let go later than at the end of its own block.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from operator import le

from ...solvers.problem.problem import Problem
from ...solvers.problem.schedule import Free, Schedule
from ...solvers.problem.simulate import simulate
from .present_gradients import schedule_in

# Gradients of one link, at most: as many as DistributedDataParallel sends at once, so it waits for no more than that.
_MOST_BYTES = 25 * 2**20


def links_of(all_there: Problem, problem: Problem, schedule: Schedule) -> tuple[int, ...]:
    """How many blocks each link has, from the first block to the last.

    problem: the step in the situation that it was solved for; all_there: with all gradients there, the situation in
    which links hold most that blocks would not. In neither the peak is higher than with a link for each block.
    """
    # Whether codes may err as much as they do has been decided.
    all_there, problem = (replace(one, error_budget=inf) for one in (all_there, problem))
    single = (1,) * (len(schedule.segments) // 2)
    links = _joined(all_there, schedule, single)
    peaks = {
        sizes: [simulate(one, schedule_in(one, schedule, sizes)).peak_bytes for one in (all_there, problem)]
        for sizes in (single, links)
    }
    return links if all(map(le, peaks[links], peaks[single])) else single


def _joined(problem: Problem, schedule: Schedule, single: tuple[int, ...]) -> tuple[int, ...]:
    """Links as long as can be, from the last block to the first."""
    alone = schedule_in(problem, schedule, single)
    timeline = simulate(problem, alone)
    returned_bytes = _returned_bytes(problem, alone)
    sizes, held_bytes = [0], 0
    for number in range(len(single), 2 * len(single)):
        segment = alone.segments[number]
        height = max(timeline.moment_bytes[segment.start : segment.stop], default=0)
        joins = height + held_bytes <= timeline.peak_bytes and held_bytes + returned_bytes[number] <= _MOST_BYTES
        if sizes[-1] and not joins:
            sizes.append(0)
            held_bytes = 0
        sizes[-1] += 1
        held_bytes += returned_bytes[number]
    return tuple(reversed(sizes))


def _returned_bytes(problem: Problem, schedule: Schedule) -> list[int]:
    """For each segment the bytes of the gradients that are let go as the function that returns them ends."""
    found = []
    for segment in schedule.segments:
        handed = {
            value
            for instruction in schedule.instructions[segment.start : segment.stop]
            if (op := getattr(instruction, "op", None)) is not None and problem.ops[op].kind == "accumulate"
            for value in problem.ops[op].reads
        }
        freed = {one.value for one in schedule.instructions[segment.start : segment.stop] if isinstance(one, Free)}
        found.append(sum(problem.values[value].size_bytes for value in handed & freed))
    return found
