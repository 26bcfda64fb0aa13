"""Turns lifetimes of values into a run order: dropped values are recomputed just before they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache

from ..problem.liveness import RunOrder
from ..problem.problem import Problem


class Lifetime(IntEnum):
    """The lifetime of a value once it is made; in any case it dies with its last reader.

    All but STEP are dropped where forward ends, and not made in forward if only backward needs them.
    """

    STEP = 0  # kept from forward to its last reader in backward
    BACKWARD = 1  # rematerialized once in backward, then kept to its last reader
    SEGMENT = 2  # rematerialized in each backward segment that needs it, and kept to the end of that segment
    READING = 3  # as SEGMENT, but kept only from where backward itself reads it, not to recompute another value
    MOMENT = 4  # rematerialized for each operation of backward that needs it


@lru_cache(maxsize=8)
def droppable(problem: Problem) -> bytes:
    """Return for each value 1 if it may live shorter than STEP: not held, and made by a repeatable operation."""
    flags = bytearray(len(problem.values))
    for op in problem.ops:
        if op.repeatable:
            for value in op.makes:
                flags[value] = not problem.values[value].held
    return bytes(flags)


@lru_cache(maxsize=8)
def residents(problem: Problem) -> bytes:
    """Return for each value 1 if it exists before the step."""
    return bytes(value.resident for value in problem.values)


@lru_cache(maxsize=8)
def may_wait(problem: Problem) -> bytes:
    """Return for each operation 1 if its first run may wait until a result is needed, or never come."""
    return bytes(op.repeatable and not op.random and bool(op.makes) for op in problem.ops)


def run_order(problem: Problem, lifetimes: Sequence[int]) -> RunOrder:
    """Return the run order of a step whose values have these lifetimes.

    Forward runs in trace order. Each operation of backward is preceded by the fewest runs, in trace order, that make
    the values it reads that are not alive. Nothing is rematerialized before the operation that needs it: a chain
    rematerialized early and held can raise the peak when more is dropped.

    lifetimes: one `Lifetime` per value; values that are not `droppable` count as STEP. STEP throughout gives the trace.
    """
    may_drop = droppable(problem)
    walk = Walk(problem, bytes(life * may for life, may in zip(lifetimes, may_drop, strict=True)))
    segments = problem.segment_operations
    blocks = len(problem.block_classes)
    walk.let_wait(range(problem.forward_length, len(problem.ops)))
    walk.let_forward_wait(range(problem.forward_length), bytearray(len(problem.values)))
    forward = tuple(walk.forward(segment) for segment in segments[:blocks])
    walk.end_forward()
    return forward + tuple(walk.backward(segment) for segment in segments[blocks:])


class Walk:
    """Walks through a step or a part of it and tracks which values are alive, at first the resident ones."""

    def __init__(self, problem: Problem, lifetimes: Sequence[int]) -> None:
        self.problem = problem
        self.lifetimes = bytearray(lifetimes)
        self.alive = bytearray(residents(problem))
        self.waits = bytearray(len(problem.ops))  # runs only when something it makes is needed
        self._segment_values: list[int] = []  # rematerialized, to be dropped at the end of the segment
        self._moment_values: list[int] = []  # rematerialized, to be dropped after the operation

    def let_wait(self, operations: Iterable[int]) -> None:
        """Let operations wait if all values they make are dropped."""
        ops, idle, lifetimes, waits = self.problem.ops, may_wait(self.problem), self.lifetimes, self.waits
        for index in operations:
            waits[index] = idle[index]
            for value in ops[index].makes:
                if not lifetimes[value]:
                    waits[index] = 0

    def let_forward_wait(self, operations: range | tuple[int, ...], read_in_forward: bytearray) -> None:
        """Let operations of forward wait likewise if the rest of forward does not need them.

        read_in_forward: 1 for values that forward reads elsewhere; the values that these operations read are added.
        """
        self.let_wait(operations)
        ops, waits = self.problem.ops, self.waits
        for index in reversed(operations):
            if waits[index]:
                for value in ops[index].makes:
                    if read_in_forward[value]:
                        waits[index] = 0
            if not waits[index]:
                for value in ops[index].reads:
                    read_in_forward[value] = 1

    def forward(self, segment: Iterable[int]) -> tuple[int, ...]:
        """Return the operations that a forward segment runs."""
        order = tuple(op for op in segment if not self.waits[op])
        for op in order:
            for value in self.problem.ops[op].makes:
                self.alive[value] = 1
        return order

    def end_forward(self) -> None:
        """Drop the values that do not live from forward to backward."""
        self.alive = bytearray(alive and not life for alive, life in zip(self.alive, self.lifetimes, strict=True))

    def backward(self, segment: Iterable[int]) -> tuple[int, ...]:
        """Return the operations that a backward segment runs."""
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
            for value in ops[index].makes:
                alive[value] = 1
            if self._moment_values:
                self._drop(self._moment_values)
        self._drop(self._segment_values)
        return tuple(order)

    def _rematerialize(self, reader: int) -> list[int]:
        """Return the fewest runs, in trace order, that make the values `reader` reads that are not alive."""
        alive, ops, maker = self.alive, self.problem.ops, self.problem.maker
        needed: set[int] = set()
        front = [reader]
        while front:
            for value in ops[front.pop()].reads:
                if not alive[value] and maker[value] not in needed:
                    needed.add(maker[value])
                    front.append(maker[value])
        order = sorted(needed)
        reads = ops[reader].reads
        for index in order:
            for value in ops[index].makes:
                if not alive[value]:
                    alive[value] = 1
                    life = self.lifetimes[value]
                    if life == Lifetime.SEGMENT or (life == Lifetime.READING and value in reads):
                        self._segment_values.append(value)
                    elif life >= Lifetime.READING:
                        self._moment_values.append(value)
        return order

    def _drop(self, values: list[int]) -> None:
        for value in values:
            self.alive[value] = 0
        values.clear()
