"""A captured step where other gradients are there before it: its problem, and what becomes of a schedule.

A gradient that is there is counted as resident, and the step's own is added to it and let go; one that is not there is
made by the step and stays. Neither changes what runs, so one program serves all of these situations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...passes.build_problem import ProblemMapping, held_storages
from ...passes.step_graph import StepGraph
from ...solvers.problem.problem import Problem
from ...solvers.problem.schedule import Free, Instruction, Run, Schedule, Segment
from .situation import Situation


def problem_in(step: StepGraph, posed: ProblemMapping, situation: Situation) -> Problem:
    """The problem of a step in a situation. posed: as it is where no gradient is there."""
    floor_bytes = max(situation.floor_bytes, situation.resident_bytes + posed.problem.floor_bytes)
    problem = replace(posed.problem, resident_bytes=situation.resident_bytes, floor_bytes=floor_bytes)
    present = {
        op: kernel
        for op, kernel in enumerate(posed.kernels)
        if kernel.target is not None
        and kernel.role == "accumulate"
        and kernel.target.meta["source"] in situation.grad_present
    }
    if not present:
        return problem
    held = held_storages(step, situation.grad_present)
    ops, values = list(problem.ops), list(problem.values)
    for index, storage in enumerate(posed.storages):
        if values[index].held != (storage in held):
            values[index] = replace(values[index], held=storage in held)
    for op, kernel in present.items():
        for value in ops[op].makes:  # a copy for autograd to take over, which is not made then
            values[value] = replace(values[value], held=False, resident=True)
        if kernel.makes:
            ops[op] = replace(ops[op], makes=(), working_bytes=0)
    return replace(problem, ops=tuple(ops), values=tuple(values))


def schedule_in(problem: Problem, schedule: Schedule, links: Sequence[int]) -> Schedule:
    """A schedule of a step, made for another situation, as the same program carries it out in the problem's.

    links: how many blocks each has that are one node of autograd's graph. A gradient that is handed over is let go when
    what returns it ends: with the last segment of its link.
    """
    never_freed = {index for index, value in enumerate(problem.values) if value.held or value.resident}
    link_of = _link_of_segments(links)
    last_read = _last_reads(problem, schedule, link_of)
    instructions: list[Instruction] = []
    segments: list[Segment] = []
    returned: dict[int, None] = {}  # of the present link
    gone: set[int] = set()
    for number, segment in enumerate(schedule.segments):
        start, link = len(instructions), link_of[number]
        for instruction in schedule.instructions[segment.start : segment.stop]:
            if isinstance(instruction, Run):
                returned |= dict.fromkeys(v for v in _handed_over(problem, instruction.op) if last_read[v] == link)
            freed = instruction.value if isinstance(instruction, Free) else None
            if freed is None or not (freed in never_freed or freed in returned or freed in gone):
                instructions.append(instruction)
        if link not in link_of[number + 1 : number + 2]:
            instructions += [Free(value) for value in returned if value not in never_freed]
            gone |= returned.keys()
            returned = {}
        segments.append(Segment(segment.block, start, len(instructions)))
    return Schedule(tuple(instructions), tuple(segments))


def _link_of_segments(links: Sequence[int]) -> list[int]:
    """For each segment the number of its link, counted on from forward's to backward's."""
    sizes = [*links, *reversed(links)]
    return [number for number, size in enumerate(sizes) for _ in range(size)]


def _handed_over(problem: Problem, op: int) -> tuple[int, ...]:
    """The gradient that an operation hands over as it is, if that is what it does."""
    told = problem.ops[op]
    return told.reads if told.kind == "accumulate" and not told.makes else ()


def _last_reads(problem: Problem, schedule: Schedule, link_of: Sequence[int]) -> Mapping[int, int]:
    """For each value the link in which an operation reads it for the last time."""
    last: dict[int, int] = defaultdict(lambda: -1)
    for number, segment in enumerate(schedule.segments):
        for instruction in schedule.instructions[segment.start : segment.stop]:
            if isinstance(instruction, Run):
                last.update(dict.fromkeys(problem.ops[instruction.op].reads, link_of[number]))
    return last
