"""Cuts of a step into blocks finer than layers: parts of a layer, and windows of large blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from ..problem.problem import Problem
from .layers import crossing_bytes, in_layers, layer_starts, merged

_LEAST_OF_A_PART = 4  # operations of forward
_AS_NARROW = 1.05  # parts begin where at most this many times the bytes cross that cross between layers
_SMALL = 160  # operations of forward of a step that can be searched as a whole
_LARGE = 24  # operations of forward that make a block worth cutting
_LINKS_OF_A_CHAIN = 4
_WORTH_CUTTING = 1.2  # times as many blocks
_MOST_BLOCKS = 48
_WINDOW = (8, 20)  # least and most operations of forward in a window


def partitions(problem: Problem) -> tuple[Problem, ...]:
    """Return the step with its blocks merged into layers, into parts of layers, and into windows.

    The coarser cuts find the best schedules of whole layers, the finer ones keep fewer bytes at once. A finer cut is
    left out if it has hardly more blocks than the one before, or too many for the time they take.
    """
    cuts = [in_layers(problem)]
    for finer in (in_parts(problem), in_windows(in_parts(problem))):
        if _WORTH_CUTTING * len(cuts[-1].block_classes) < len(finer.block_classes) <= _MOST_BLOCKS:
            cuts.append(finer)
    return tuple(cuts)


def chains(problem: Problem) -> tuple[Problem, ...]:
    """Return the partitions worth nesting: windows only of steps without a chain of layers; small steps also uncut."""
    layers, parts, windows = in_layers(problem), in_parts(problem), in_windows(in_parts(problem))
    cuts = [layers]
    if parts in partitions(problem):
        cuts.append(parts)
    if windows in partitions(problem) and len(layers.block_classes) < _LINKS_OF_A_CHAIN:
        cuts.append(windows)
    if problem.forward_length <= _SMALL:
        cuts.append(merged(problem, [0]))
    return tuple(dict.fromkeys(cuts))


@lru_cache(maxsize=8)
def in_parts(problem: Problem) -> Problem:
    """Return layers cut wherever as few bytes cross as between layers, such as between attention and feed-forward."""
    crossing, layers = crossing_bytes(problem), layer_starts(problem)
    sizes = [len(operations) for operations in problem.segment_operations[: len(problem.block_classes)]]
    starts = []
    for start, end in zip(layers, [*layers[1:], len(sizes)], strict=True):
        starts.append(start)
        narrow = _AS_NARROW * max(crossing[start], crossing[end] if end < len(sizes) else 0)
        for block in range(start + 1, end):
            long_enough = min(sum(sizes[starts[-1] : block]), sum(sizes[block:end])) >= _LEAST_OF_A_PART
            if crossing[block] <= narrow and long_enough:
                starts.append(block)
    return merged(problem, starts)


@lru_cache(maxsize=8)
def in_windows(problem: Problem) -> Problem:
    """Return blocks of many operations cut where few bytes cross that are read soon after.

    Values read much later (the skips of a U-Net) cross every cut, so they do not distinguish cuts. Blocks of one class
    are cut at the same places. An operation of backward goes with the latest window that it or a later one reads from.
    """
    blocks = len(problem.block_classes)
    segments = problem.segment_operations
    cuts_of_class: dict[int, list[int]] = {}
    first_window, block_of, classes = 0, [0] * len(problem.ops), []
    numbers: dict[tuple[int, int], int] = {}
    for block, block_class in enumerate(problem.block_classes):
        forward, backward = segments[block], segments[2 * blocks - 1 - block]
        if block_class not in cuts_of_class:
            operations = [(problem.ops[index].reads, problem.ops[index].makes) for index in forward]
            cuts_of_class[block_class] = window_cuts(operations, [value.size_bytes for value in problem.values])
        cuts = cuts_of_class[block_class]
        window_of = {index: bisect_right(cuts, position) for position, index in enumerate(forward)}
        for index, window in window_of.items():
            block_of[index] = first_window + window
        latest = 0
        for index in reversed(backward):
            latest = max([latest, *(window_of.get(problem.maker[value], 0) for value in problem.ops[index].reads)])
            block_of[index] = first_window + latest
        classes += [numbers.setdefault((block_class, window), len(numbers)) for window in range(len(cuts) + 1)]
        first_window += len(cuts) + 1
    if first_window == blocks:
        return problem
    ops = tuple(replace(op, block=block) for op, block in zip(problem.ops, block_of, strict=True))
    return replace(problem, ops=ops, block_classes=tuple(classes))


def window_cuts(operations: Sequence[tuple[Sequence[int], Sequence[int]]], size_bytes: Sequence[int]) -> list[int]:
    """Return the positions at which to cut operations into windows, without the first; none for few operations.

    The cuts are where the fewest bytes cross that are read soon after.

    operations: the values that each reads and makes.
    size_bytes: of these values, by their numbers.
    """
    least, most = _WINDOW
    cuts: list[int] = []
    start = 0
    while len(operations) - start > _LARGE:
        ends = range(start + least, min(start + most, len(operations) - least) + 1)
        start = min(ends, key=lambda end: (_read_soon_bytes(operations, size_bytes, end, most), -end))
        cuts.append(start)
    return cuts


def _read_soon_bytes(
    operations: Sequence[tuple[Sequence[int], Sequence[int]]], size_bytes: Sequence[int], position: int, soon: int
) -> int:
    """Return the bytes made before a position and read within the next `soon` operations."""
    made = {value for _, makes in operations[:position] for value in makes}
    read = {value for reads, _ in operations[position : position + soon] for value in reads}
    return sum(size_bytes[value] for value in made & read)
