"""The ways to run one layer, told by what runs and in which order: what each keeps, how high it rises, how long
it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..problem.problem import Problem
from ..problem.problem_arrays import arrays_of, unbeaten_rows
from .block_values import shared_values, stream_values


@dataclass(frozen=True)
class BlockSchedule:
    """One way to run a block of a class, everything that other blocks make or read being kept.

    forward, backward: what runs in the block's forward and in its backward, in order, as positions in
        `operations_of`, so that a way of one block is one of every block of its class. An operation of forward that
        runs for the first time in backward has waited.
    kept_bytes: alive from forward to backward (values that other blocks read left out, recorded generator states
        included).
    height_bytes: the highest moment of backward above what is alive when it begins, with the kept bytes counted in,
        and what backward reads of the block's output: to be added to what the rest of the step holds then.
    forward_height_bytes: the highest moment of forward above what is alive when it begins.
    seconds: beyond running every operation once.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    kept_bytes: int
    height_bytes: int
    forward_height_bytes: int
    seconds: float


def operations_of(problem: Problem, block: int) -> tuple[int, ...]:
    """The operations of a block, those of its forward first."""
    segments = problem.segment_operations
    return segments[block] + segments[2 * len(problem.block_classes) - 1 - block]


class BlockEvaluator:
    """Weighs ways to run one block."""

    def __init__(self, problem: Problem, block: int) -> None:
        self.problem, self.block = problem, block
        self.operations = operations_of(problem, block)
        self.position = {index: position for position, index in enumerate(self.operations)}
        arrays = arrays_of(problem)
        self.size_bytes, self.momentary_bytes = arrays.size_bytes.tolist(), arrays.momentary_bytes.tolist()
        shared = shared_values(problem)
        own = [value for index in self.operations for value in problem.ops[index].makes]
        turn = problem.forward_length
        # what forward makes for this block alone: alive when backward begins only if backward wants it
        self.loose = frozenset(
            value
            for value in own
            if problem.maker[value] < turn and value not in shared and not problem.values[value].held
        )
        touched = {value for index in self.operations for value in problem.ops[index].reads} | set(own)
        self.held = {value for value in touched if problem.values[value].held}
        after = block + 1
        self.stream = stream_values(problem)[after] if after < len(problem.block_classes) else frozenset()
        # what an earlier block reads stays: it may have to run its forward again
        self.after_backward = {
            value
            for value in touched
            if problem.values[value].held
            or problem.values[value].resident
            or any(problem.ops[reader].block < block for reader in problem.readers[value])
        }

    def weigh(self, forward: tuple[int, ...], backward: tuple[int, ...]) -> BlockSchedule:
        """The way that runs these operations (by their numbers in the problem)."""
        ops, turn = self.problem.ops, self.problem.forward_length
        again = {index for index in backward if index < turn and ops[index].random}
        states_bytes = self.problem.state_bytes * len(again)
        wanted, rise_bytes = self._backward(backward)
        kept = wanted & self.loose
        kept_bytes = self._size(kept) + states_bytes
        once = sum(ops[index].seconds for index in self.operations)
        ran = sum(ops[index].seconds for index in forward) + sum(ops[index].seconds for index in backward)
        return BlockSchedule(
            forward=tuple(self.position[index] for index in forward),
            backward=tuple(self.position[index] for index in backward),
            kept_bytes=kept_bytes,
            height_bytes=rise_bytes + self._size(wanted) + states_bytes,
            forward_height_bytes=self.forward_peak(forward, kept) + states_bytes,
            seconds=ran - once,
        )

    def wanted(self, backward: tuple[int, ...]) -> frozenset[int]:
        """What a backward wants of what its block's forward makes for itself and for the next block alone."""
        return self._backward(backward)[0]

    def forward_peak(self, forward: tuple[int, ...], kept: frozenset[int]) -> int:
        """The highest moment of a forward that keeps these values, above what is alive when it begins."""
        ops, size = self.problem.ops, self.size_bytes
        alive = {value for index in forward for value in ops[index].makes if value not in self.loose} | kept
        live = sum(size[value] for index in forward for value in ops[index].makes if value in alive)
        highest = live
        for index in reversed(forward):
            for value in ops[index].makes:
                if value in alive:
                    alive.discard(value)
                    live -= size[value]
            reused = 0
            for value in ops[index].reads:
                if value in self.loose and value not in alive:
                    alive.add(value)
                    live += size[value]
                    reused += size[value] * (value == ops[index].reuses)
            highest = max(highest, live + self.momentary_bytes[index] - reused)
        return highest

    def _backward(self, order: tuple[int, ...]) -> tuple[frozenset[int], int]:
        """(values wanted, bytes by which it rises above its beginning), walked from the end to the beginning."""
        ops, size, momentary = self.problem.ops, self.size_bytes, self.momentary_bytes
        needed = self.after_backward.copy()
        live = highest = 0  # relative to the end
        for index in reversed(order):
            for value in ops[index].makes:
                if value in needed:
                    live -= size[value]
                    if value not in self.held:
                        needed.discard(value)
            reused = 0
            for value in ops[index].reads:
                if value not in needed:
                    needed.add(value)
                    live += size[value]
                    reused += size[value] * (value == ops[index].reuses)
            highest = max(highest, live + momentary[index] - reused)
        return frozenset((self.loose | self.stream) & needed), highest - live

    def _size(self, values: Iterable[int]) -> int:
        return sum(self.size_bytes[value] for value in values)


def unbeaten(ways: Iterable[BlockSchedule]) -> tuple[BlockSchedule, ...]:
    """Those that no other is as good as in everything, from the most bytes kept to the fewest."""
    order = sorted(ways, key=lambda w: (w.seconds, w.kept_bytes, w.height_bytes, w.forward, w.backward))
    best = unbeaten_rows(np.array([(way.kept_bytes, way.height_bytes, way.forward_height_bytes) for way in order]))
    return tuple(sorted((order[i] for i in best), key=lambda way: (-way.kept_bytes, way.seconds)))
