"""Joins neighbouring blocks into one node of autograd's graph, a link, where the step's peak does not grow.

Each node costs about 25 microseconds in forward and the same in backward. Autograd receives the gradients of a link
when its whole backward has run. A gradient that becomes `.grad` lives to the end in any case. A gradient that is added
to a `.grad` is freed later than at the end of its own block.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from operator import le

from ...solvers.problem.problem import Problem
from ...solvers.problem.schedule import Free, Schedule
from ...solvers.problem.simulate import simulate
from .present_gradients import schedule_in

# The most bytes of gradients in one link: as many as DistributedDataParallel sends at once, so it waits for no more.
_MOST_BYTES = 25 * 2**20


def links_of(all_present: Problem, problem: Problem, schedule: Schedule) -> tuple[int, ...]:
    """Return the number of blocks in each link, from the first block to the last.

    In neither problem the peak is higher than with one link for each block.
    all_present: the step with all gradients present, the situation in which links hold more than blocks would.
    problem: the step in the situation that it was solved for.
    """
    # The error of codes has been checked before.
    all_present, problem = (replace(case, error_budget=inf) for case in (all_present, problem))
    single = (1,) * (len(schedule.segments) // 2)
    links = _joined(all_present, schedule, single)
    peaks = {
        sizes: [simulate(case, schedule_in(case, schedule, sizes)).peak_bytes for case in (all_present, problem)]
        for sizes in (single, links)
    }
    return links if all(map(le, peaks[links], peaks[single])) else single


def _joined(problem: Problem, schedule: Schedule, single: tuple[int, ...]) -> tuple[int, ...]:
    """Return links that are as long as possible, from the last block to the first."""
    unjoined = schedule_in(problem, schedule, single)
    timeline = simulate(problem, unjoined)
    returned_bytes = _returned_bytes(problem, unjoined)
    sizes, held_bytes = [0], 0
    for number in range(len(single), 2 * len(single)):
        segment = unjoined.segments[number]
        segment_peak_bytes = max(timeline.moment_bytes[segment.start : segment.stop], default=0)
        joins = (
            segment_peak_bytes + held_bytes <= timeline.peak_bytes
            and held_bytes + returned_bytes[number] <= _MOST_BYTES
        )
        if sizes[-1] and not joins:
            sizes.append(0)
            held_bytes = 0
        sizes[-1] += 1
        held_bytes += returned_bytes[number]
    return tuple(reversed(sizes))


def _returned_bytes(problem: Problem, schedule: Schedule) -> list[int]:
    """Return, for each segment, the bytes of the gradients that are freed when the function that returns them ends."""
    returned_bytes = []
    for segment in schedule.segments:
        accumulated = {
            value
            for instruction in schedule.instructions[segment.start : segment.stop]
            if (op := getattr(instruction, "op", None)) is not None and problem.ops[op].kind == "accumulate"
            for value in problem.ops[op].reads
        }
        freed = {
            instruction.value
            for instruction in schedule.instructions[segment.start : segment.stop]
            if isinstance(instruction, Free)
        }
        returned_bytes.append(sum(problem.values[value].size_bytes for value in accumulated & freed))
    return returned_bytes
