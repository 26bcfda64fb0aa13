"""From how long each value lives to a run order: what is dropped is run again just before it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache

from .liveness import RunOrder
from .problem import Problem


class Lifetime(IntEnum):
    """How long a value lives once it is made; in any case it dies with its last reader.

    All but STEP are dropped where forward ends, and not made in forward at all if only backward needs them.
    """

    STEP = 0  # kept from forward to its last reader in backward
    BACKWARD = 1  # rematerialized once in backward, then kept to its last reader
    SEGMENT = 2  # rematerialized in each backward segment that needs it, and kept to the end of that
    MOMENT = 3  # rematerialized for each operation of backward that needs it


@lru_cache(maxsize=8)
def droppable(problem: Problem) -> bytes:
    """For each value 1 if it may live shorter than STEP: made in forward or backward by a repeatable
    operation."""
    flags = bytearray(len(problem.values))
    for op in problem.ops:
        if op.repeatable:
            for value in op.makes:
                flags[value] = not problem.values[value].held
    return bytes(flags)


def run_order(problem: Problem, lifetimes: Sequence[int]) -> RunOrder:
    """Forward in trace order; then each operation of backward, preceded by the fewest runs that make what it
    reads and is not alive, these in trace order.

    lifetimes: one `Lifetime` per value; values that are not `droppable` count as STEP. With STEP throughout
    this is the trace. Nothing is rematerialized before the operation that needs it: a chain rematerialized
    early and held can raise the peak when more is dropped.
    """
    walk = _Walk(problem, bytes(lifetimes))
    segments = problem.segment_operations
    blocks = len(problem.block_classes)
    forward = tuple(walk.forward(segment) for segment in segments[:blocks])
    walk.turn()
    return forward + tuple(walk.backward(segment) for segment in segments[blocks:])


class _Walk:
    """Walks through the step and knows what is alive."""

    def __init__(self, problem: Problem, lifetimes: bytes) -> None:
        self.problem = problem
        may_drop = droppable(problem)
        self.lifetimes = bytes(life if may else 0 for life, may in zip(lifetimes, may_drop, strict=True))
        self.alive = bytearray(value.resident for value in problem.values)
        self.waits = self._find_waiting()
        self.segment_values: list[int] = []  # rematerialized, to be dropped at the end of the segment
        self.moment_values: list[int] = []  # rematerialized, to be dropped after the operation

    def _find_waiting(self) -> bytearray:
        """Operations that run only when something they make is needed: backward's, or forward's that forward
        can do without."""
        problem, lifetimes = self.problem, self.lifetimes
        waits = bytearray(len(problem.ops))
        read_in_forward = bytearray(len(problem.values))
        for index in range(len(problem.ops) - 1, -1, -1):
            op = problem.ops[index]
            idle = op.repeatable and not op.random and bool(op.makes)
            waits[index] = idle and all(lifetimes[value] for value in op.makes)
            if index >= problem.forward_length:
                continue
            if any(read_in_forward[value] for value in op.makes):
                waits[index] = 0
            if not waits[index]:
                for value in op.reads:
                    read_in_forward[value] = 1
        return waits

    def forward(self, segment: Iterable[int]) -> tuple[int, ...]:
        """What a forward segment runs."""
        order = tuple(op for op in segment if not self.waits[op])
        for op in order:
            for value in self.problem.ops[op].makes:
                self.alive[value] = 1
        return order

    def turn(self) -> None:
        """Drop what does not live from forward to backward."""
        for value, life in enumerate(self.lifetimes):
            if life:
                self.alive[value] = 0

    def backward(self, segment: Iterable[int]) -> tuple[int, ...]:
        """What a backward segment runs."""
        order: list[int] = []
        alive, ops, waits = self.alive, self.problem.ops, self.waits
        for index in segment:
            if waits[index]:
                continue
            for value in ops[index].reads:
                if not alive[value]:
                    order += self._rematerialize(index)
                    break
            order.append(index)
            self._make(index)
            if self.moment_values:
                self._drop(self.moment_values)
        self._drop(self.segment_values)
        return tuple(order)

    def _rematerialize(self, reader: int) -> list[int]:
        """The fewest runs, in trace order, that make what `reader` reads and is not alive."""
        alive, ops, maker = self.alive, self.problem.ops, self.problem.maker
        needed: set[int] = set()
        front = [reader]
        while front:
            for value in ops[front.pop()].reads:
                if not alive[value] and maker[value] not in needed:
                    needed.add(maker[value])
                    front.append(maker[value])
        order = sorted(needed)
        for index in order:
            self._make(index)
        return order

    def _make(self, index: int) -> None:
        for value in self.problem.ops[index].makes:
            if not self.alive[value]:
                self.alive[value] = 1
                life = self.lifetimes[value]
                if life == Lifetime.SEGMENT:
                    self.segment_values.append(value)
                elif life == Lifetime.MOMENT:
                    self.moment_values.append(value)

    def _drop(self, values: list[int]) -> None:
        for value in values:
            self.alive[value] = 0
        values.clear()
