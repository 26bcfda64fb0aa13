"""The ways to run one block: what each keeps, how high its backward rises, how long it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..problem.problem import Problem
from ..problem.problem_arrays import arrays_of, unbeaten_rows
from .block_values import alike, forward_values, shared_values
from .rematerialize import Lifetime, Walk, droppable
from .tradeoff import curve_of, trade_of

_MANY = 8  # blocks
FIRST_LIFETIMES = (Lifetime.SEGMENT, Lifetime.READING, Lifetime.MOMENT)


@dataclass(frozen=True)
class Option:
    """One way to run a block of a class.

    lifetimes: per forward value of the block, by position. kept_bytes: alive from forward to backward (values
    that other blocks read left out). rise_bytes: from the beginning of the block's backward to its highest
    moment.
    seconds: beyond running every operation once.
    """

    lifetimes: bytes
    kept_bytes: int
    rise_bytes: int
    seconds: float


class OptionEvaluator:
    """Tries options on one block, everything else being kept."""

    def __init__(self, problem: Problem, block: int) -> None:
        segments = problem.segment_operations
        self.problem, self.values = problem, forward_values(problem)[block]
        self.forward = segments[block]
        self.backward = segments[2 * len(problem.block_classes) - 1 - block]
        self.walk = Walk(problem, bytes(len(problem.values)))
        self.walk.alive = bytearray(b"\1") * len(problem.values)
        may_drop, shared = droppable(problem), shared_values(problem)
        self.loose = bytes(may_drop[value] and value not in shared for value in self.values)
        self.loose_values = {value for value, loose in zip(self.values, self.loose, strict=True) if loose}
        # values of this block that the forward of others reads
        self.read_elsewhere = bytearray(len(problem.values))
        for value in self.values:
            self.read_elsewhere[value] = value not in self.loose_values
        arrays = arrays_of(problem)
        self.size_bytes, self.momentary_bytes = arrays.size_bytes.tolist(), arrays.momentary_bytes.tolist()
        touched = {value for index in self.backward for value in problem.ops[index].reads} | set(self.values)
        # values that outlive this block's backward
        self.held = {v for v in touched if problem.values[v].held}
        self.outlive = {v for v in touched if problem.values[v].held or problem.values[v].resident}
        turn = problem.forward_length
        self.outlive |= {
            v for v in touched if any(problem.ops[r].block < block for r in problem.readers[v] if r >= turn)
        }

    def try_out(self, lifetimes: bytes) -> Option:
        """The option with these lifetimes, those of values that cannot be dropped put right."""
        lifetimes = self._possible(lifetimes)
        walk, problem = self.walk, self.problem
        order = self._walk(lifetimes)
        late = sum(problem.ops[index].seconds for index in self.forward if walk.waits[index])
        ran = sum(problem.ops[index].seconds for index in order)
        once = sum(problem.ops[index].seconds for index in self.backward)
        again = {index for index in order if index < problem.forward_length and problem.ops[index].random}
        kept_bytes, rise_bytes = self._bytes(order)
        kept_bytes += problem.state_bytes * len(again)
        return Option(lifetimes, kept_bytes, rise_bytes, ran - once - late)

    def runs_of(self, lifetimes: bytes) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the block's forward and its backward run with these lifetimes."""
        backward = self._walk(self._possible(lifetimes))
        return tuple(index for index in self.forward if not self.walk.waits[index]), backward

    def _possible(self, lifetimes: bytes) -> bytes:
        """The lifetimes, those of values that cannot be dropped put right."""
        return bytes(life * loose for life, loose in zip(lifetimes, self.loose, strict=True))

    def _walk(self, lifetimes: bytes) -> tuple[int, ...]:
        """What backward runs; the walk knows then what waits in forward."""
        walk = self.walk
        for value, life in zip(self.values, lifetimes, strict=True):
            walk.lifetimes[value] = life
            walk.alive[value] = not life
        walk.let_forward_wait(self.forward, self.read_elsewhere.copy())
        return walk.backward(self.backward)

    def _bytes(self, order: tuple[int, ...]) -> tuple[int, int]:
        """(kept, rise) of this block's backward, walked from its end to its beginning."""
        ops, size, momentary = self.problem.ops, self.size_bytes, self.momentary_bytes
        needed = self.outlive.copy()
        live = highest = 0  # relative to the end
        for index in reversed(order):
            op = ops[index]
            for value in op.makes:
                if value in needed:
                    live -= size[value]
                    if value not in self.held:
                        needed.discard(value)
            reused = 0
            for value in op.reads:
                if value not in needed:
                    needed.add(value)
                    live += size[value]
                    reused += size[value] * (value == op.reuses)
            if live + momentary[index] - reused > highest:
                highest = live + momentary[index] - reused
        return sum(size[value] for value in self.loose_values & needed), highest - live


@lru_cache(maxsize=64)
def options_of(problem: Problem, block: int, visits: int = 500_000) -> tuple[Option, ...]:
    """Options of a block, none beaten by another.

    First the best trades of bytes kept for time (`curve_of`), with every lifetime that what is dropped may
    have; then, from those, single values changed as long as it pays, which finds what lowers the rise of
    backward; `visits` limits the work, in operations looked at (a million takes about half a second).
    """
    bench = OptionEvaluator(problem, block)
    starts = [bytes(len(bench.values)), *by_hand(bench), *_trades(problem, block, bench)]
    found = {option.lifetimes: option for option in map(bench.try_out, starts)}
    _improve(bench, found, visits, members=members_of(problem, block))
    return _unbeaten(found.values())


def members_of(problem: Problem, block: int) -> int:
    """How many blocks are equal to this one, as far as it matters: in more than a few, only what they keep counts."""
    kinds = alike(problem)
    return min(kinds.count(kinds[block]), _MANY)


def _improve(bench: OptionEvaluator, found: dict[bytes, Option], visits: int, members: int) -> None:
    """Change single lifetimes as long as seconds + price · (weight · kept + rise) falls; adds all that is tried.

    weight: in how many blocks of the class what is kept adds up at the highest moment. Large values are tried
    first, and only so many that a few rounds of trials fit into `visits` operations looked at.
    """
    starts = _unbeaten(found.values())
    kept, seconds = starts[0].kept_bytes, max(option.seconds for option in starts)
    prices = [seconds / max(kept, 1) * 2.0**power for power in range(-3, 4)] if seconds > 0 else []
    goals = [(weight, price) for price in prices for weight in dict.fromkeys((members, 1 + members // 4, 1))]
    trials = visits // (len(bench.forward) + len(bench.backward)) // max(len(goals), 1)
    sizes = [bench.problem.values[value].size_bytes for value in bench.values]
    loose = [position for position, free in enumerate(bench.loose) if free and sizes[position]]
    largest = sorted(loose, key=lambda position: -sizes[position])[: trials // 6]
    for weight, price in goals:

        def cost(option: Option, weight: int = weight, price: float = price) -> float:
            return option.seconds + price * (weight * option.kept_bytes + option.rise_bytes)

        best, left, improved = min(starts, key=cost), trials, True
        while improved and left > 0:
            improved = False
            for position in largest:
                for life in (Lifetime.STEP, *FIRST_LIFETIMES):
                    lifetimes = best.lifetimes[:position] + bytes((life,)) + best.lifetimes[position + 1 :]
                    if lifetimes not in found:
                        found[lifetimes] = bench.try_out(lifetimes)
                        left -= 1
                    if cost(found[lifetimes]) < cost(best) - 1e-9 * seconds:
                        best, improved = found[lifetimes], True


def _trades(problem: Problem, block: int, bench: OptionEvaluator) -> Iterable[bytes]:
    """Lifetimes of the best trades of a block."""
    ops, sizes = problem.ops, [bench.size_bytes[value] for value in bench.values]
    seconds = sum(ops[index].seconds for index in (*bench.forward, *bench.backward))
    highest_price = (seconds or 1.0) / min((size for size in sizes if size), default=1)
    for point in curve_of(trade_of(problem, block, shares=False), highest_price).points:
        for life in FIRST_LIFETIMES:
            yield bytes(0 if i in point.kept else life for i in range(len(bench.values)))


def by_hand(bench: OptionEvaluator) -> Iterable[bytes]:
    """Lifetimes of what is done by hand: keep nothing; keep what intensive operations make."""
    problem = bench.problem
    for life in FIRST_LIFETIMES:
        yield bytes([life] * len(bench.values))
        yield bytes(0 if problem.ops[problem.maker[value]].intensive else life for value in bench.values)


def _unbeaten(options: Iterable[Option]) -> tuple[Option, ...]:
    """Those that no other is as good as in everything, from the most bytes kept to the fewest."""
    order = sorted(options, key=lambda o: (o.seconds, o.kept_bytes, o.rise_bytes, o.lifetimes))
    best = unbeaten_rows(np.array([(option.kept_bytes, option.rise_bytes) for option in order]))
    return tuple(sorted((order[i] for i in best), key=lambda o: (-o.kept_bytes, o.seconds)))
