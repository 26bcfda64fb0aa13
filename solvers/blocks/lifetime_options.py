"""Options of one block: lifetimes of its values, with the bytes they keep, the peak of backward and the seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..problem.problem import Problem
from ..problem.problem_arrays import unbeaten_rows
from .block_schedules import BlockEvaluator, BlockSchedule
from .block_values import alike, forward_values, shared_values
from .rematerialize import Lifetime, Walk, droppable
from .tradeoff import curve_of, trade_of

_MANY = 8  # blocks
FIRST_LIFETIMES = (Lifetime.SEGMENT, Lifetime.READING, Lifetime.MOMENT)


@dataclass(frozen=True)
class Option:
    """An option of a block of a class, with the estimates that rank it among others.

    `BlockSchedule` has the exact bytes of what it runs. The estimates count the block as if nothing outlived its
    backward but what it was given: gradients that it makes and leaves take their bytes only while they are made.

    lifetimes: per forward value of the block, by position.
    kept_bytes: alive from forward to backward, without values that other blocks read or that are made only once.
    peak_above_start_bytes: the peak of the block's backward above the bytes alive when it begins.
    seconds: time beyond running every operation once.
    """

    lifetimes: bytes
    kept_bytes: int
    peak_above_start_bytes: int
    seconds: float


class OptionEvaluator:
    """Evaluates options of one block; all values of other blocks are kept."""

    def __init__(self, problem: Problem, block: int) -> None:
        segments = problem.segment_operations
        self.problem, self.values = problem, forward_values(problem)[block]
        self.forward = segments[block]
        self.backward = segments[2 * len(problem.block_classes) - 1 - block]
        self.walk = Walk(problem, bytes(len(problem.values)))
        self.walk.alive = bytearray(b"\1") * len(problem.values)
        may_drop, shared = droppable(problem), shared_values(problem)
        self.is_droppable = bytes(may_drop[value] and value not in shared for value in self.values)
        self.droppable_values = {
            value for value, is_droppable in zip(self.values, self.is_droppable, strict=True) if is_droppable
        }
        # values of this block that the forward of others reads
        self.read_elsewhere = bytearray(len(problem.values))
        for value in self.values:
            self.read_elsewhere[value] = value not in self.droppable_values
        self.evaluator = BlockEvaluator(problem, block)
        self.peak_walk = self.evaluator.peak_walk
        touched = {value for index in self.backward for value in problem.ops[index].reads} | set(self.values)
        # values that outlive this block's backward
        self.outlive = {v for v in touched if problem.values[v].held or problem.values[v].resident}
        boundary = problem.forward_length
        self.outlive |= {
            v for v in touched if any(problem.ops[r].block < block for r in problem.readers[v] if r >= boundary)
        }

    def try_out(self, lifetimes: bytes) -> Option:
        """Return the option with these lifetimes, with values that cannot be dropped kept for the step."""
        lifetimes = self._possible(lifetimes)
        walk, problem = self.walk, self.problem
        order = self._walk(lifetimes)
        waiting_seconds = sum(problem.ops[index].seconds for index in self.forward if walk.waits[index])
        backward_seconds = sum(problem.ops[index].seconds for index in order)
        once_seconds = sum(problem.ops[index].seconds for index in self.backward)
        redrawn = {index for index in order if index < problem.forward_length and problem.ops[index].random}
        kept_bytes, peak_above_start_bytes = self._bytes(order)
        kept_bytes += problem.state_bytes * len(redrawn)
        return Option(lifetimes, kept_bytes, peak_above_start_bytes, backward_seconds - once_seconds - waiting_seconds)

    def schedule(self, lifetimes: bytes) -> BlockSchedule:
        """Return the schedule with these lifetimes, with values that cannot be dropped kept for the step."""
        backward = self._walk(self._possible(lifetimes))
        return self.evaluator.evaluate(tuple(index for index in self.forward if not self.walk.waits[index]), backward)

    def _possible(self, lifetimes: bytes) -> bytes:
        """Return the lifetimes, with values that cannot be dropped kept for the step."""
        return bytes(life * is_droppable for life, is_droppable in zip(lifetimes, self.is_droppable, strict=True))

    def _walk(self, lifetimes: bytes) -> tuple[int, ...]:
        """Return the operations that backward runs; the walk then knows which ones wait in forward."""
        walk = self.walk
        for value, life in zip(self.values, lifetimes, strict=True):
            walk.lifetimes[value] = life
            walk.alive[value] = not life
        walk.let_forward_wait(self.forward, self.read_elsewhere.copy())
        return walk.backward(self.backward)

    def _bytes(self, order: tuple[int, ...]) -> tuple[int, int]:
        """Return the bytes kept for this block's backward, and its peak above the bytes alive when it begins."""
        alive = self.outlive.copy()
        peak_bytes = self.peak_walk.peak_above_start(order, alive)
        return sum(self.peak_walk.size_bytes[value] for value in self.droppable_values & alive), peak_bytes


@lru_cache(maxsize=64)
def options_of(problem: Problem, block: int, visits: int = 500_000) -> tuple[Option, ...]:
    """Return options of a block of which none beats another.

    The search begins with the best trades of bytes kept for time (`curve_of`), with every lifetime for dropped values.
    From those it changes single values as long as that lowers the cost, which also lowers the peak of backward.

    visits: limits the work, in operations visited; a million take about half a second.
    """
    evaluator = OptionEvaluator(problem, block)
    starts = [bytes(len(evaluator.values)), *by_hand(evaluator), *_trades(problem, block, evaluator)]
    options = {option.lifetimes: option for option in map(evaluator.try_out, starts)}
    _improve(evaluator, options, visits, members=members_of(problem, block))
    return _unbeaten(options.values())


def members_of(problem: Problem, block: int) -> int:
    """Return how many blocks equal this one, limited to `_MANY`: with more, only the bytes they keep matter."""
    kinds = alike(problem)
    return min(kinds.count(kinds[block]), _MANY)


def _improve(evaluator: OptionEvaluator, options: dict[bytes, Option], visits: int, members: int) -> None:
    """Change single lifetimes as long as seconds + price · (weight · kept bytes + peak above the start) falls.

    Every option tried is added to `options`. The weight is the number of blocks of the class whose kept bytes add up
    at the highest moment. Large values come first, and only as many as leave a few rounds within `visits`.
    """
    starts = _unbeaten(options.values())
    kept, seconds = starts[0].kept_bytes, max(option.seconds for option in starts)
    prices = [seconds / max(kept, 1) * 2.0**power for power in range(-3, 4)] if seconds > 0 else []
    goals = [(weight, price) for price in prices for weight in dict.fromkeys((members, 1 + members // 4, 1))]
    trials = visits // (len(evaluator.forward) + len(evaluator.backward)) // max(len(goals), 1)
    sizes = [evaluator.problem.values[value].size_bytes for value in evaluator.values]
    candidates = [
        position for position, droppable in enumerate(evaluator.is_droppable) if droppable and sizes[position]
    ]
    largest = sorted(candidates, key=lambda position: -sizes[position])[: trials // 6]
    for weight, price in goals:

        def cost(option: Option, weight: int = weight, price: float = price) -> float:
            return option.seconds + price * (weight * option.kept_bytes + option.peak_above_start_bytes)

        best, trials_left, improved = min(starts, key=cost), trials, True
        while improved and trials_left > 0:
            improved = False
            for position in largest:
                for life in (Lifetime.STEP, *FIRST_LIFETIMES):
                    lifetimes = best.lifetimes[:position] + bytes((life,)) + best.lifetimes[position + 1 :]
                    if lifetimes not in options:
                        options[lifetimes] = evaluator.try_out(lifetimes)
                        trials_left -= 1
                    if cost(options[lifetimes]) < cost(best) - 1e-9 * seconds:
                        best, improved = options[lifetimes], True


def _trades(problem: Problem, block: int, evaluator: OptionEvaluator) -> Iterable[bytes]:
    """Yield the lifetimes of the best trades of a block."""
    ops, sizes = problem.ops, [problem.values[value].size_bytes for value in evaluator.values]
    seconds = sum(ops[index].seconds for index in (*evaluator.forward, *evaluator.backward))
    highest_price = (seconds or 1.0) / min((size for size in sizes if size), default=1)
    for point in curve_of(trade_of(problem, block, shares=False), highest_price).points:
        for life in FIRST_LIFETIMES:
            yield bytes(0 if i in point.kept else life for i in range(len(evaluator.values)))


def by_hand(evaluator: OptionEvaluator) -> Iterable[bytes]:
    """Yield the lifetimes of manual recipes: keep nothing, or keep the results of intensive operations."""
    problem = evaluator.problem
    for life in FIRST_LIFETIMES:
        yield bytes([life] * len(evaluator.values))
        yield bytes(0 if problem.ops[problem.maker[value]].compute_intensive else life for value in evaluator.values)


def _unbeaten(options: Iterable[Option]) -> tuple[Option, ...]:
    """Return the options that no other matches in every respect, from the most bytes kept to the fewest."""
    order = sorted(options, key=lambda o: (o.seconds, o.kept_bytes, o.peak_above_start_bytes, o.lifetimes))
    best = unbeaten_rows(np.array([(option.kept_bytes, option.peak_above_start_bytes) for option in order]))
    return tuple(sorted((order[i] for i in best), key=lambda o: (-o.kept_bytes, o.seconds)))
