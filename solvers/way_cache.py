"""Keeps the ways to run a block on disk, by what is in the block, so that models share those of equal layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from .block_trade import forward_needs
from .disk_cache import DiskCache, entry_name
from .problem import Problem
from .rematerialize import droppable
from .ways import Way, operations_of

_CACHE = DiskCache()


def cached_ways(
    problem: Problem,
    block: int,
    told: str,
    find: Callable[[], Sequence[Way]],
    cache: DiskCache | None = _CACHE,
) -> tuple[Way, ...]:
    """The ways to run a block as `find` finds them, from the cache if they are there, put there if not.

    told: all else that `find` depends on: which solver it is, its limits, and what it looks at beyond the block
    (`block_content`), such as how many equal blocks there are or how long the whole step takes.
    """
    if cache is None:
        return tuple(find())
    name = entry_name("ways", block_content(problem, block), told)
    entry = cache.read(name)
    if entry is not None:
        return tuple(_way(**one) for one in entry.told)
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
    for index in operations:
        for value in (*problem.ops[index].reads, *problem.ops[index].makes):
            number.setdefault(value, len(number))
    ops = [
        (
            *(op.kind, op.seconds, op.working_bytes, op.repeatable, op.random, op.intensive),
            *(index < problem.forward_length, needs[index], number.get(op.reuses)),
            *([number[value] for value in values] for values in (op.reads, op.makes)),
        )
        for index, op in ((index, problem.ops[index]) for index in operations)
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


def _seen_from(problem: Problem, block: int, index: int) -> tuple[bool, int]:
    """Where an operation runs: whether in forward; in this block (0), the next (1), the one before (-1) or farther."""
    away = problem.ops[index].block - block
    return index < problem.forward_length, max(-2, min(away, 2))


def _way(forward: list[int], backward: list[int], **numbers) -> Way:
    """A way from what JSON knows of it."""
    return Way(forward=tuple(forward), backward=tuple(backward), **numbers)
