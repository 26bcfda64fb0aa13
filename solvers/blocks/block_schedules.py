"""Schedules of one block: the operations that its forward and backward run, with their bytes and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..problem.problem import Problem
from ..problem.problem_arrays import unbeaten_rows
from .block_values import shared_values, stream_values
from .peak_walk import PeakWalk


@dataclass(frozen=True)
class BlockSchedule:
    """A schedule of a block of a class; all values that other blocks make or read are kept.

    forward, backward: the operations that run in forward and in backward, in order, as positions in `operations_of`.
        A schedule of one block therefore fits every block of its class. An operation of forward that first runs in
        backward has waited.
    kept_bytes: alive from forward to backward, with recorded generator states but without values that other blocks
        read.
    backward_peak_bytes: the peak of backward above the bytes alive when it begins. It includes the kept bytes and
        the values of the block's output that backward reads; add it to the bytes that the rest of the step holds.
    forward_peak_bytes: the peak of forward above the bytes alive when it begins.
    seconds: time beyond running every operation once.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    kept_bytes: int
    backward_peak_bytes: int
    forward_peak_bytes: int
    seconds: float


def operations_of(problem: Problem, block: int) -> tuple[int, ...]:
    """Return the operations of a block, those of its forward first."""
    segments = problem.segment_operations
    return segments[block] + segments[2 * len(problem.block_classes) - 1 - block]


class BlockEvaluator:
    """Computes the bytes and seconds of schedules of one block."""

    def __init__(self, problem: Problem, block: int) -> None:
        self.problem, self.block = problem, block
        self.operations = operations_of(problem, block)
        self.position = {index: position for position, index in enumerate(self.operations)}
        self.peak_walk = PeakWalk(problem)
        self.size_bytes = self.peak_walk.size_bytes
        shared = shared_values(problem)
        own = [value for index in self.operations for value in problem.ops[index].makes]
        boundary = problem.forward_length
        # values that forward makes for this block alone: alive when backward begins only if backward reads them
        self.local_values = frozenset(
            value
            for value in own
            if problem.maker[value] < boundary and value not in shared and not problem.values[value].held
        )
        touched = {value for index in self.operations for value in problem.ops[index].reads} | set(own)
        self.outside = touched - self.local_values
        following = block + 1
        self.stream = stream_values(problem)[following] if following < len(problem.block_classes) else frozenset()
        self.may_be_required = self.local_values | self.stream
        # a value that an earlier block reads stays: that block may have to recompute its forward
        self.after_backward = {
            value
            for value in touched
            if problem.values[value].held
            or problem.values[value].resident
            or any(problem.ops[reader].block < block for reader in problem.readers[value])
        }

    def evaluate(self, forward: tuple[int, ...], backward: tuple[int, ...]) -> BlockSchedule:
        """Return the schedule that runs these operations, given by their numbers in the problem."""
        ops, boundary = self.problem.ops, self.problem.forward_length
        redrawn = {index for index in backward if index < boundary and ops[index].random}
        states_bytes = self.problem.state_bytes * len(redrawn)
        required, peak_above_start_bytes = self._backward(backward)
        kept_values = required & self.local_values
        kept_bytes = self._size(kept_values) + states_bytes
        once_seconds = sum(ops[index].seconds for index in self.operations)
        ran_seconds = sum(ops[index].seconds for index in forward) + sum(ops[index].seconds for index in backward)
        return BlockSchedule(
            forward=self.positions(forward),
            backward=self.positions(backward),
            kept_bytes=kept_bytes,
            backward_peak_bytes=peak_above_start_bytes + self._size(required) + states_bytes,
            forward_peak_bytes=self.forward_peak(forward, kept_values) + states_bytes,
            seconds=ran_seconds - once_seconds,
        )

    def positions(self, operations: Iterable[int]) -> tuple[int, ...]:
        """Return the positions of operations in the block."""
        return tuple(self.position[index] for index in operations)

    def required_values(self, backward: tuple[int, ...]) -> frozenset[int]:
        """Return the values that backward requires, of those made for this block and the next one alone."""
        return self._backward(backward)[0]

    def forward_peak(self, forward: Sequence[int], kept: frozenset[int]) -> int:
        """Return the peak of a forward that keeps these values, above the bytes alive when it begins."""
        alive = self.outside | kept
        made_bytes = self._size(value for index in forward for value in self.problem.ops[index].makes if value in alive)
        peaks, _ = self.peak_walk.peaks(forward, alive)
        return made_bytes + max(0, max(peaks, default=0))

    def run_peaks(self, backward: Sequence[int]) -> list[int]:
        """Return the peak of each run of a backward, above the bytes alive when it begins."""
        peaks, start_bytes = self.peak_walk.peaks(backward, self.after_backward.copy())
        return [peak_bytes - start_bytes for peak_bytes in reversed(peaks)]

    def _backward(self, backward: Sequence[int]) -> tuple[frozenset[int], int]:
        """Return the values that backward requires, and its peak above the bytes alive when it begins."""
        required = self.after_backward.copy()
        peak_bytes = self.peak_walk.peak_above_start(backward, required)
        return frozenset(self.may_be_required & required), peak_bytes

    def _size(self, values: Iterable[int]) -> int:
        return sum(self.size_bytes[value] for value in values)


def unbeaten(schedules: Iterable[BlockSchedule]) -> tuple[BlockSchedule, ...]:
    """Return the schedules that no other matches in every respect, from the most bytes kept to the fewest."""
    order = sorted(
        schedules,
        key=lambda schedule: (
            schedule.seconds,
            schedule.kept_bytes,
            schedule.backward_peak_bytes,
            schedule.forward,
            schedule.backward,
        ),
    )
    rows = unbeaten_rows(
        np.array(
            [(schedule.kept_bytes, schedule.backward_peak_bytes, schedule.forward_peak_bytes) for schedule in order]
        )
    )
    return tuple(sorted((order[row] for row in rows), key=lambda schedule: (-schedule.kept_bytes, schedule.seconds)))
