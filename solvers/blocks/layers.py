"""Merges consecutive blocks that repeat together into layers, and splits run orders of layers into those blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from ..problem.liveness import RunOrder, bytes_at
from ..problem.problem import Problem

_LONGEST_PERIOD = 64
_WORTH_ROTATING = 0.9  # begin layers elsewhere if at most this share of the bytes crosses there
_MOST_OF_A_LAYER = 1.5  # stretches between runs of layers are cut into pieces of at most this many layers


@lru_cache(maxsize=8)
def in_layers(problem: Problem) -> Problem:
    """Return the step with blocks merged into layers, for deciding which values to keep.

    Blocks are cut wherever few bytes cross, which may be several times within a layer. A value that crosses within a
    layer may be dropped like any other; checkpointing keeps those that cross between layers. A run of layers is where
    the classes of blocks are periodic; layers begin where fewest bytes cross. The rest is cut into pieces not much
    larger than a layer, or than the largest block.
    """
    return merged(problem, layer_starts(problem))


def merged(problem: Problem, first_blocks: Sequence[int]) -> Problem:
    """Return the step with blocks merged; `first_blocks` begin the new ones, in order."""
    ends = [*first_blocks[1:], len(problem.block_classes)]
    layer_of: list[int] = []
    classes: dict[tuple[int, ...], int] = {}
    layer_classes: list[int] = []
    for layer, (start, end) in enumerate(zip(first_blocks, ends, strict=True)):
        layer_of += [layer] * (end - start)
        layer_classes.append(classes.setdefault(problem.block_classes[start:end], len(classes)))
    if len(first_blocks) == len(problem.block_classes):
        return problem
    ops = tuple(replace(op, block=layer_of[op.block]) for op in problem.ops)
    return replace(problem, ops=ops, block_classes=tuple(layer_classes))


def in_blocks(problem: Problem, order: RunOrder) -> RunOrder:
    """Return a run order of `in_layers(problem)` with its segments cut into those of the problem's own blocks.

    Operations of forward run in their own block. In backward, operations that run once mark their block's segment;
    operations recomputed for them go with them.
    """
    count = 2 * len(problem.block_classes)
    if len(order) == count:
        return order
    runs = [op for segment in order for op in segment]
    boundary = sum(len(segment) for segment in order[: len(order) // 2])
    home, once = _homes(problem)
    forward, backward = np.array(runs[:boundary], dtype=np.int64), np.array(runs[boundary:], dtype=np.int64)
    # the segment begun by the latest operation that runs once, and the one that the next one needs
    begun = np.maximum.accumulate(np.where(once[backward], home[backward], count // 2))
    required = np.where(backward >= problem.forward_length, np.maximum(home[backward], begun), count - 1)
    following = np.minimum.accumulate(required[::-1])[::-1]
    ends = np.searchsorted(np.concatenate((home[forward], following)), np.arange(count), side="right").tolist()
    return tuple(tuple(runs[start:end]) for start, end in zip([0, *ends], ends, strict=False))


@lru_cache(maxsize=8)
def _homes(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return for each operation its segment, and whether it runs once."""
    home = np.empty(len(problem.ops), dtype=np.int64)
    for segment, operations in enumerate(problem.segment_operations):
        home[list(operations)] = segment
    return home, np.array([not op.repeatable for op in problem.ops])


def layer_starts(problem: Problem) -> list[int]:
    """Return the first block of every layer."""
    crossing = crossing_bytes(problem)
    sizes = [len(operations) for operations in problem.segment_operations[: len(problem.block_classes)]]
    starts: list[int] = []
    between: list[tuple[int, int]] = []
    pending = [(0, len(problem.block_classes))]
    largest = max(sizes)
    while pending:
        low, high = pending.pop()
        run = _longest_run(problem.block_classes[low:high])
        if run is None:
            between.append((low, high))
            continue
        begin, period, count = low + run[0], run[1], run[2]
        rotated = min(range(period), key=lambda shift: (crossing[begin + shift], shift))
        if count > 2 and crossing[begin + rotated] < _WORTH_ROTATING * crossing[begin]:
            begin, count = begin + rotated, count - 1
        starts += range(begin, begin + period * count, period)
        largest = max(largest, sum(sizes[begin : begin + period]))
        pending += [(low, begin), (begin + period * count, high)]
    for low, high in between:
        starts += _pieces(low, high, sizes, crossing, _MOST_OF_A_LAYER * largest)
    return sorted(starts)


def _pieces(low: int, high: int, sizes: list[int], crossing: list[int], most: float) -> list[int]:
    """Cut blocks low..high-1 into pieces of at most `most` operations of forward; return their first blocks.

    Each piece ends in the second half of its range, where fewest bytes cross.
    """
    starts: list[int] = []
    while low < high:
        starts.append(low)
        ends, size = [low + 1], sizes[low]
        for block in range(low + 1, high):
            size += sizes[block]
            if size > most:
                break
            if size > most / 2:
                ends.append(block + 1)
        else:
            ends = [high]
        low = min(ends[1:] or ends, key=lambda end: (crossing[end], -end))
    return starts


def _longest_run(classes: Sequence[int]) -> tuple[int, int, int] | None:
    """Return (start, period, repetitions) of the run that covers most blocks; of equals the shortest period."""
    best, covered = None, 0
    for period in range(1, min(_LONGEST_PERIOD, len(classes) // 2) + 1):
        same = 0
        for at in range(len(classes) - period - 1, -2, -1):
            if at >= 0 and classes[at] == classes[at + period]:
                same += 1
                continue
            count = 1 + same // period
            if count > 1 and period * count > covered:
                best, covered = (at + 1, period, count), period * count
            same = 0
    return best


def crossing_bytes(problem: Problem) -> list[int]:
    """Return for each block the bytes that earlier blocks' forward makes and its own or a later one's reads."""
    spans = []
    for value, maker in enumerate(problem.maker):
        if 0 <= maker < problem.forward_length:
            readers = [r for r in problem.readers[value] if r < problem.forward_length]
            if readers:
                begin, end = problem.ops[maker].block + 1, problem.ops[readers[-1]].block + 1
                spans.append((begin, end, problem.values[value].size_bytes))
    return bytes_at(spans, len(problem.block_classes) + 1)
