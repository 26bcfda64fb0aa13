"""Values that the blocks of a problem own and share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from ..problem.problem import Problem
from .rematerialize import droppable
from .tradeoff import forward_needs


@lru_cache(maxsize=8)
def forward_values(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Return for each block the values its forward makes, in order; positions correspond within a class."""
    blocks = len(problem.block_classes)
    return tuple(
        tuple(value for op in operations for value in problem.ops[op].makes)
        for operations in problem.segment_operations[:blocks]
    )


@lru_cache(maxsize=8)
def shared_values(problem: Problem) -> frozenset[int]:
    """Return the values that forward makes in one block and another block reads."""
    shared = set()
    for op in problem.ops[: problem.forward_length]:
        for value in op.makes:
            if any(problem.ops[reader].block != op.block for reader in problem.readers[value]):
                shared.add(value)
    return frozenset(shared)


@lru_cache(maxsize=8)
def stream_values(problem: Problem) -> tuple[frozenset[int], ...]:
    """Return for each block the values that the block before makes and only these two read: they may be dropped."""
    blocks = len(problem.block_classes)
    may_drop, streams = droppable(problem), [set() for _ in range(blocks)]
    for value in shared_values(problem):
        block = problem.ops[problem.maker[value]].block + 1
        readers = {problem.ops[reader].block for reader in problem.readers[value]}
        if may_drop[value] and block < blocks and readers <= {block - 1, block}:
            streams[block].add(value)
    return tuple(frozenset(stream) for stream in streams)


def repeated_blocks(problem: Problem) -> tuple[int, ...]:
    """Return the blocks whose class has several members, in order; all blocks if there are none."""
    members = Counter(problem.block_classes)
    repeated = tuple(b for b, block_class in enumerate(problem.block_classes) if members[block_class] > 1)
    return repeated or tuple(range(len(problem.block_classes)))


def block_inputs(problem: Problem, block: int) -> tuple[int, ...]:
    """Return the values of other blocks' forward that the forward of this one reads."""
    own = frozenset(forward_values(problem)[block])
    shared = shared_values(problem)
    reads = (v for op in problem.segment_operations[block] for v in problem.ops[op].reads)
    return tuple(dict.fromkeys(v for v in reads if v in shared and v not in own))


@lru_cache(maxsize=8)
def alike(problem: Problem) -> tuple[int, ...]:
    """Return for each block the first block that has the same schedules.

    Both are of one class, with equal times, sizes and wiring. The same of their values are held, read by other blocks
    or needed before backward; blocks merged into layers of one class may differ in these.
    """
    segments, last = problem.segment_operations, 2 * len(problem.block_classes) - 1
    shared, needs, values = shared_values(problem), forward_needs(problem), problem.values
    first: dict[tuple, int] = {}
    representatives = []
    for block, block_class in enumerate(problem.block_classes):
        number: dict[int, int] = {}
        signature = []
        for index in segments[block] + segments[last - block]:
            op = problem.ops[index]
            wiring = tuple(number.setdefault(value, len(number)) for value in (*op.reads, *op.makes))
            makes = tuple((values[value].size_bytes, values[value].held, value in shared) for value in op.makes)
            signature.append((op.seconds, bool(needs[index]), wiring, makes))
        representatives.append(first.setdefault((block_class, len(segments[block]), tuple(signature)), block))
    return tuple(representatives)


def middle_member(kinds: Sequence[int], kind: int) -> int:
    """Return the block that represents its kind (`alike`); the first and the last may have unusual neighbours."""
    members = [block for block, other in enumerate(kinds) if other == kind]
    return members[len(members) // 2]
