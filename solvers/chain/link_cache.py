"""Keeps schedules of blocks on disk by the content of the block, so that models share those of equal layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from math import isfinite
from operator import index

from ..blocks.block_schedules import BlockSchedule, operations_of
from ..blocks.rematerialize import droppable
from ..blocks.tradeoff import forward_needs
from ..disk_cache import DamagedEntry, DiskCache, Entry, decoding, entry_name
from ..problem.problem import Problem

_CACHE = DiskCache()


def cached_schedules(
    problem: Problem,
    block: int,
    configuration: str,
    find: Callable[[], Sequence[BlockSchedule]],
    cache: DiskCache | None = _CACHE,
) -> tuple[BlockSchedule, ...]:
    """Return the schedules of a block that `find` returns, from the cache if possible; otherwise store them there.

    configuration: all else that `find` depends on: the solver, its limits, and properties beyond the block
        (`block_content`), such as the number of equal blocks or the time of the whole step.
    """
    if cache is None:
        return tuple(find())
    name = entry_name("block_schedules", block_content(problem, block), configuration)
    entry = cache.read(name)
    if entry is not None:
        with suppress(DamagedEntry):
            return _stored_schedules(entry, len(operations_of(problem, block)))
    schedules = tuple(find())
    cache.write(name, [asdict(schedule) for schedule in schedules])
    return schedules


def block_content(problem: Problem, block: int) -> str:
    """Return the content of a block without names: equal for blocks with the same schedules, in any model.

    It holds the operations in order, with values numbered by first use, and for each value its size, its origin and
    its other readers.
    """
    operations, needs = operations_of(problem, block), forward_needs(problem)
    number: dict[int, int] = {}
    for place in operations:
        for value in (*problem.ops[place].reads, *problem.ops[place].makes):
            number.setdefault(value, len(number))
    ops = [
        (
            *(op.kind, op.seconds, op.working_bytes, op.repeatable, op.random, op.compute_intensive),
            *(place < problem.forward_length, needs[place], number.get(op.reuses)),  # pyright: ignore
            *([number[value] for value in values] for values in (op.reads, op.makes)),
        )
        for place, op in ((place, problem.ops[place]) for place in operations)
    ]
    values = [_value_content(problem, block, value) for value in number]
    return repr((problem.state_bytes, ops, values))


def _value_content(problem: Problem, block: int, value: int) -> tuple:
    """Return a value's size, whether it may be freed or dropped, its origin and the places of its readers."""
    record, maker = problem.values[value], problem.maker[value]
    if record.resident:
        return (record.size_bytes,)  # available to all
    readers = {_relative_place(problem, block, reader) for reader in problem.readers[value]}
    kind = (record.size_bytes, record.held, droppable(problem)[value])
    return (*kind, _relative_place(problem, block, maker), sorted(readers))


def _relative_place(problem: Problem, block: int, place: int) -> tuple[bool, int]:
    """Return (whether an operation is in forward, the distance of its block from this one, limited to ±2)."""
    away = problem.ops[place].block - block
    return place < problem.forward_length, max(-2, min(away, 2))


def _stored_schedules(entry: Entry, operations: int) -> tuple[BlockSchedule, ...]:
    """Return the schedules of an entry for a block of `operations` operations. Raises DamagedEntry if it has none."""
    schedules = []
    with decoding("schedules"):
        for record in entry.content:
            runs = {name: tuple(record[name]) for name in ("forward", "backward")}
            schedule = BlockSchedule(**(record | runs))
            if not all(0 <= index(position) < operations for position in (*schedule.forward, *schedule.backward)):
                raise ValueError(f"a schedule runs operations outside 0..{operations - 1}")
            if min(map(index, (schedule.kept_bytes, schedule.backward_peak_bytes, schedule.forward_peak_bytes))) < 0:
                raise ValueError("a schedule has a negative number of bytes")
            if not isfinite(schedule.seconds):
                raise ValueError(f"a schedule takes {schedule.seconds} s, which is not finite")
            schedules.append(schedule)
    return tuple(schedules)
