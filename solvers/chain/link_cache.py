"""Keeps the ways to run a block on disk, by what is in the block, so that models share those of equal layers."""

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
    told: str,
    find: Callable[[], Sequence[BlockSchedule]],
    cache: DiskCache | None = _CACHE,
) -> tuple[BlockSchedule, ...]:
    """The ways to run a block as `find` finds them, from the cache if they are there, put there if not.

    told: all else that `find` depends on: which solver it is, its limits, and what it looks at beyond the block
    (`block_content`), such as how many equal blocks there are or how long the whole step takes.
    """
    if cache is None:
        return tuple(find())
    name = entry_name("ways", block_content(problem, block), told)
    entry = cache.read(name)
    if entry is not None:
        with suppress(DamagedEntry):
            return _stored_schedules(entry, len(operations_of(problem, block)))
    found = tuple(find())
    cache.write(name, [asdict(way) for way in found])
    return found


def block_content(problem: Problem, block: int) -> str:
    """What a block is made of, free of names: equal for blocks that can be run in the same ways, in any model.

    Its operations in order, what their values are numbered by first use; for each value its size, where it comes from
    and who else reads it.
    """
    operations, needs = operations_of(problem, block), forward_needs(problem)
    number: dict[int, int] = {}
    for place in operations:
        for value in (*problem.ops[place].reads, *problem.ops[place].makes):
            number.setdefault(value, len(number))
    ops = [
        (
            *(op.kind, op.seconds, op.working_bytes, op.repeatable, op.random, op.intensive),
            *(place < problem.forward_length, needs[place], number.get(op.reuses)),  # pyright: ignore
            *([number[value] for value in values] for values in (op.reads, op.makes)),
        )
        for place, op in ((place, problem.ops[place]) for place in operations)
    ]
    values = [_value_content(problem, block, value) for value in number]
    return repr((problem.state_bytes, ops, values))


def _value_content(problem: Problem, block: int, value: int) -> tuple:
    """A value's size, whether it may be freed or dropped, from where it comes, and from where else it is read."""
    told, maker = problem.values[value], problem.maker[value]
    if told.resident:
        return (told.size_bytes,)  # there for all
    readers = {_seen_from(problem, block, reader) for reader in problem.readers[value]}
    kind = (told.size_bytes, told.held, droppable(problem)[value])
    return (*kind, _seen_from(problem, block, maker), sorted(readers))


def _seen_from(problem: Problem, block: int, place: int) -> tuple[bool, int]:
    """Where an operation runs: whether in forward; in this block (0), the next (1), the one before (-1) or farther."""
    away = problem.ops[place].block - block
    return place < problem.forward_length, max(-2, min(away, 2))


def _stored_schedules(entry: Entry, operations: int) -> tuple[BlockSchedule, ...]:
    """The ways of an entry for a block of so many operations. Raises DamagedEntry where it holds none."""
    found = []
    with decoding("ways"):
        for told in entry.content:
            way = BlockSchedule(**{**told, "forward": tuple(told["forward"]), "backward": tuple(told["backward"])})
            if not all(0 <= index(position) < operations for position in (*way.forward, *way.backward)):
                raise ValueError("a way by operations that there are not")
            if min(map(index, (way.kept_bytes, way.height_bytes, way.forward_height_bytes))) < 0:
                raise ValueError("a way of fewer than no bytes")
            if not isfinite(way.seconds):
                raise ValueError(f"a way of {way.seconds} s")
            found.append(way)
    return tuple(found)
