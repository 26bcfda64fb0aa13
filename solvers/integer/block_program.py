"""The integer program of one block: the fastest way to run it under limits on what it keeps and how high it rises.

Its backward is cut into stages as in `ilp`. Forward is one stage in trace order in which nothing runs again: W[k] is 1
if operation k runs in it, fixed where the rest of forward or another block needs it, and A[0,v] says what it keeps.

    W[k] <= W[k(u)]                                 u read by k                 `BlockProgram._state_forward`
    A[0,v] <= W[k(v)]                               v kept                      `BlockProgram._state_forward`
    sum of size[v] · A[0,v], states included <= kept_bytes                      `BlockProgram._state_kept`
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import fsum

import pulp

from ..blocks.block_schedules import BlockEvaluator, BlockSchedule
from ..problem.problem import Problem
from .answer import Answer, Effort, Term
from .block_stages import BlockStages, stages_of_block
from .memory_rows import Limited, Moments, divisors_of, unit_of
from .search import Reading, Search
from .stage_program import StageProgram
from .stages import Start


@dataclass(frozen=True)
class Proven:
    """The fastest way found, None if none was; and the seconds (beyond running everything once) that no way under the
    same limits goes below, infinite if there is none."""

    way: BlockSchedule | None
    least_seconds: float


class BlockProgram:
    """The program of one block; solved for one pair of limits after another."""

    def __init__(self, problem: Problem, block: int, rounds: int = 1) -> None:
        self.bench = BlockEvaluator(problem, block)
        self.block: BlockStages = stages_of_block(problem, block, rounds)
        self.core = StageProgram(self.block.stages)
        self.moments = Moments(self.core)
        self.search = Search(self.core, self.moments, self._read, self._values_of)
        self.kept = Limited(self.core, divisors_of(self.core.cut), unit_of(self.core.cut))
        self._forward: dict[int, pulp.LpVariable] = {}
        self._state_forward()
        self._state_kept()

    def in_forward(self, index: int) -> Term:
        """1 if the operation runs in forward."""
        if index in self.block.must:
            return 1
        if index not in self._forward:
            self._forward[index] = self.core.program.variable(f"w{index}")
        return self._forward[index]

    def _state_forward(self) -> None:
        """What runs in forward finds there what it reads; what is kept is made there."""
        core, ops = self.core, self.bench.problem.ops
        for index, needs in self.block.needs.items():
            runs = self.in_forward(index)
            for need in needs:
                core.program.at_most([(1, runs), (-1, self.in_forward(need))], 0)
        for piece, told in enumerate(core.cut.pieces):
            if told.start is Start.KEPT and told.value >= 0:
                made = self.in_forward(self.bench.problem.maker[told.value])
                core.program.at_most([(1, core.alive(0, piece)), (-1, made)], 0)
        costs = [(ops[index].seconds / core.seconds_unit, variable) for index, variable in self._forward.items()]
        core.program.minimize([*core.costs(), *costs])

    def _state_kept(self) -> None:
        """What is alive when backward begins counts as kept."""
        pieces = self.core.cut.pieces
        kept = [n for n, told in enumerate(pieces) if told.start is Start.KEPT]
        self.kept.state([(pieces[n].size_bytes, self.core.alive(0, n)) for n in kept], 0)

    def fastest(self, kept_bytes: int, height_bytes: int, start: BlockSchedule | None, effort: Effort) -> Proven:
        """The way that takes least time with both `Way.kept_bytes` and `Way.height_bytes` limited.

        `start`: a way to begin with; if it keeps the limits the answer is no slower. `effort.gap` in seconds.
        """
        self.kept.limit(kept_bytes)
        self.moments.peak.limit(height_bytes)
        known = None
        if start is not None and start.kept_bytes <= kept_bytes and start.height_bytes <= height_bytes:
            known = Reading(start, self._objective(start.seconds))
        best, least = self.search.best(known, replace(effort, gap=effort.gap / self.core.seconds_unit))
        least_seconds = least * self.core.seconds_unit - self._once_seconds
        return Proven(best.found, min(least_seconds, best.found.seconds)) if best else Proven(None, least_seconds)

    def _objective(self, seconds: float) -> float:
        """The program's objective for seconds beyond running everything once."""
        return (seconds + self._once_seconds) / self.core.seconds_unit

    @cached_property
    def _once_seconds(self) -> float:
        """What running everything once takes, of what the program has a say in."""
        ops, turn = self.bench.problem.ops, self.bench.problem.forward_length
        backward = [one.op for one in self.core.cut.repeatables if one.op >= turn]
        return fsum(ops[index].seconds for index in [*self.block.needs, *backward])

    def _values_of(self, way: BlockSchedule) -> dict[str, float] | None:
        """The values that describe a way; where it runs something within a stage or twice in it, nearly so."""
        core, operations = self.core, self.bench.operations
        place = {one.op: place for place, one in enumerate(core.cut.repeatables)}
        stage_of = {index: stage for stage, one in enumerate(core.cut.stages) for index in one.ops}
        chosen: list[set[int]] = [set() for _ in core.cut.stages]
        waiting: set[int] = set()
        begun = 0
        for position in way.backward:
            index = operations[position]
            if index in place:
                waiting.add(place[index])
                continue
            if stage_of[index] > begun or waiting:
                chosen[stage_of[index]] |= waiting
                waiting, begun = set(), stage_of[index]
        chosen[-1] |= waiting
        for stage, runs in enumerate(chosen):
            for one in runs:
                if not core.cut.repeatables[one].first <= stage <= core.cut.repeatables[one].last:
                    return None
        values = self.moments.complete(core.values_of(chosen))
        forward = {operations[position] for position in way.forward}
        return values | {variable.name: float(index in forward) for index, variable in self._forward.items()}

    def _read(self, answer: Answer) -> Reading[BlockSchedule]:
        """The way that a solution describes."""
        backward, stage_of, needed = self._tidied(self.core.ran(answer))
        way = self.bench.weigh(self._forward_for(needed), tuple(backward))
        heights = zip(stage_of, self._heights(backward, way), strict=True)
        high = {stage for stage, height in heights if height > self.moments.peak.most_bytes}
        fits = not high and way.kept_bytes <= self.kept.most_bytes
        return Reading(way, self._objective(way.seconds), fits, frozenset(high))

    def _forward_for(self, wanted: set[int]) -> tuple[int, ...]:
        """What has to run in forward for a backward that wants these values."""
        ops, needed, runs = self.bench.problem.ops, wanted & self.bench.loose, set(self.block.must)
        for index in reversed(self.block.forward):
            if index in runs or not needed.isdisjoint(ops[index].makes):
                runs.add(index)
                needed |= set(ops[index].reads)
        return tuple(index for index in self.block.forward if index in runs)

    def _tidied(self, ran: list[list[int]]) -> tuple[list[int], list[int], set[int]]:
        """(what runs in backward, in which stages, what is needed when it begins), without what makes nothing
        needed."""
        cut, ops = self.core.cut, self.bench.problem.ops
        needed = set(self.bench.after_backward)
        order: list[tuple[int, int]] = []
        for stage in range(len(ran) - 1, -1, -1):
            runs = [(index, False) for index in reversed(cut.stages[stage].ops)]
            runs += [(cut.repeatables[place].op, True) for place in reversed(ran[stage])]
            for index, repeatable in runs:
                if repeatable and needed.isdisjoint(ops[index].makes):
                    continue
                needed.difference_update(ops[index].makes)
                needed.update(ops[index].reads)
                order.append((index, stage))
        order.reverse()
        return [index for index, _ in order], [stage for _, stage in order], needed

    def _heights(self, backward: list[int], way: BlockSchedule) -> list[int]:
        """The height of every run; the highest one is the way's."""
        bench, ops = self.bench, self.bench.problem.ops
        needed, live = bench.after_backward.copy(), 0
        heights = []
        for index in reversed(backward):
            for value in ops[index].makes:
                if value in needed:
                    live -= bench.size_bytes[value]
                    if value not in bench.held:
                        needed.discard(value)
            for value in ops[index].reads:
                if value not in needed:
                    needed.add(value)
                    live += bench.size_bytes[value]
            heights.append(live + bench.momentary_bytes[index])
        highest = max(heights, default=0)
        return [height - highest + way.height_bytes for height in reversed(heights)]
