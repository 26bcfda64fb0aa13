"""Adapts a captured step's problem and schedule to the gradients that are present before the step.

A gradient that is present counts as resident; the step's own gradient is added to it and freed. An absent gradient is
made by the step and stays. Neither changes which operations run, so one program serves all these situations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...passes.build_problem import ProblemMapping, find_held_storages
from ...passes.step_graph import StepGraph
from ...passes.step_kernels import GradAccumulate
from ...solvers.problem.problem import Problem
from ...solvers.problem.schedule import Free, Instruction, Run, Schedule, Segment
from .situation import Situation


def problem_in(step: StepGraph, mapping: ProblemMapping, situation: Situation) -> Problem:
    """Return the problem of a step in a situation.

    mapping: the problem mapping in the situation without gradients.
    """
    floor_bytes = max(situation.floor_bytes, situation.resident_bytes + mapping.problem.floor_bytes)
    problem = replace(mapping.problem, resident_bytes=situation.resident_bytes, floor_bytes=floor_bytes)
    present = {
        op: kernel
        for op, kernel in enumerate(mapping.kernels)
        if isinstance(kernel, GradAccumulate) and kernel.target.meta["source"] in situation.grad_present
    }
    if not present:
        return problem
    held = find_held_storages(step, situation.grad_present)
    ops, values = list(problem.ops), list(problem.values)
    for index, storage in enumerate(mapping.storages):
        if values[index].held != (storage in held):
            values[index] = replace(values[index], held=storage in held)
    for op, kernel in present.items():
        for value in ops[op].makes:  # a copy for autograd to steal, which is not made then
            values[value] = replace(values[value], held=False, resident=True)
        if kernel.makes:
            ops[op] = replace(ops[op], makes=(), working_bytes=0)
    return replace(problem, ops=tuple(ops), values=tuple(values))


def schedule_in(problem: Problem, schedule: Schedule, links: Sequence[int]) -> Schedule:
    """Return a schedule made for another situation as the same program carries it out in this problem's situation.

    A gradient that is accumulated into .grad is freed with the last segment of its link.
    links: the number of blocks in each node of autograd's graph.
    """
    never_freed = {index for index, value in enumerate(problem.values) if value.held or value.resident}
    link_of = _link_of_segments(links)
    last_read = _last_reads(problem, schedule, link_of)
    instructions: list[Instruction] = []
    segments: list[Segment] = []
    returned: dict[int, None] = {}  # of the present link
    freed_values: set[int] = set()
    for number, segment in enumerate(schedule.segments):
        start, link = len(instructions), link_of[number]
        for instruction in schedule.instructions[segment.start : segment.stop]:
            if isinstance(instruction, Run):
                returned |= dict.fromkeys(
                    v for v in _accumulated_gradients(problem, instruction.op) if last_read[v] == link
                )
            freed = instruction.value if isinstance(instruction, Free) else None
            if freed is None or not (freed in never_freed or freed in returned or freed in freed_values):
                instructions.append(instruction)
        if link not in link_of[number + 1 : number + 2]:
            instructions += [Free(value) for value in returned if value not in never_freed]
            freed_values |= returned.keys()
            returned = {}
        segments.append(Segment(segment.block, start, len(instructions)))
    return Schedule(tuple(instructions), tuple(segments))


def _link_of_segments(links: Sequence[int]) -> list[int]:
    """Return the number of each segment's link. Links of backward are numbered after those of forward."""
    sizes = [*links, *reversed(links)]
    return [number for number, size in enumerate(sizes) for _ in range(size)]


def _accumulated_gradients(problem: Problem, op: int) -> tuple[int, ...]:
    """Return the gradient that an operation passes on to .grad unchanged, if the operation does that."""
    operation = problem.ops[op]
    return operation.reads if operation.kind == "accumulate" and not operation.makes else ()


def _last_reads(problem: Problem, schedule: Schedule, link_of: Sequence[int]) -> Mapping[int, int]:
    """Return, for each value, the last link in which an operation reads it."""
    last: dict[int, int] = defaultdict(lambda: -1)
    for number, segment in enumerate(schedule.segments):
        for instruction in schedule.instructions[segment.start : segment.stop]:
            if isinstance(instruction, Run):
                last.update(dict.fromkeys(problem.ops[instruction.op].reads, link_of[number]))
    return last
