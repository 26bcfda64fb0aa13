"""The integer program of one block: its fastest schedule under limits on the bytes kept and the peak of backward.

Its backward is cut into stages as in `checkmate`. Forward is one stage in trace order without recomputation. W[k] is 1
if operation k runs in it, fixed where the rest of forward or another block needs k; A[0,v] is 1 if it keeps value v.

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
from .search import Search, Solution
from .stage_program import StageProgram
from .stages import Start


@dataclass(frozen=True)
class Proven:
    """The fastest schedule found, with a proven bound.

    schedule: None if none was found.
    least_seconds: beyond running everything once; a bound for all schedules under the same limits, infinite if there
        is none.
    """

    schedule: BlockSchedule | None
    least_seconds: float


class BlockProgram:
    """The program of one block, solved for one pair of limits after another."""

    def __init__(self, problem: Problem, block: int, rounds: int = 1) -> None:
        self.evaluator = BlockEvaluator(problem, block)
        self.block: BlockStages = stages_of_block(problem, block, rounds)
        self.core = StageProgram(self.block.stages)
        self.moments = Moments(self.core)
        self.search = Search(self.core, self.moments, self._decode, self._values_of)
        self.kept = Limited(self.core, divisors_of(self.core.cut), unit_of(self.core.cut))
        self._forward: dict[int, pulp.LpVariable] = {}
        self._state_forward()
        self._state_kept()

    def in_forward(self, index: int) -> Term:
        """Return the term that is 1 if the operation runs in forward."""
        if index in self.block.must:
            return 1
        if index not in self._forward:
            self._forward[index] = self.core.program.variable(f"w{index}")
        return self._forward[index]

    def _state_forward(self) -> None:
        """State that operations of forward find the values they read, and that values kept are made there."""
        core, ops = self.core, self.evaluator.problem.ops
        for index, needs in self.block.needs.items():
            runs = self.in_forward(index)
            for need in needs:
                core.program.at_most([(1, runs), (-1, self.in_forward(need))], 0)
        for piece, record in enumerate(core.cut.pieces):
            if record.start is Start.KEPT and record.value >= 0:
                made = self.in_forward(self.evaluator.problem.maker[record.value])
                core.program.at_most([(1, core.alive(0, piece)), (-1, made)], 0)
        costs = [(ops[index].seconds / core.seconds_unit, variable) for index, variable in self._forward.items()]
        core.program.minimize([*core.costs(), *costs])

    def _state_kept(self) -> None:
        """State that pieces alive when backward begins count as kept."""
        pieces = self.core.cut.pieces
        kept = [piece for piece, record in enumerate(pieces) if record.start is Start.KEPT]
        self.kept.state([(pieces[piece].size_bytes, self.core.alive(0, piece)) for piece in kept], 0)

    def fastest(self, kept_bytes: int, backward_peak_bytes: int, start: BlockSchedule | None, effort: Effort) -> Proven:
        """Return the fastest schedule with both kept_bytes and backward_peak_bytes limited.

        start: a schedule to begin with; if it is within the limits the answer is no slower.
        effort: its gap is in seconds.
        """
        self.kept.limit(kept_bytes)
        self.moments.peak.limit(backward_peak_bytes)
        incumbent = None
        if start is not None and start.kept_bytes <= kept_bytes and start.backward_peak_bytes <= backward_peak_bytes:
            incumbent = Solution(start, self._objective(start.seconds))
        best, least = self.search.best(incumbent, replace(effort, gap=effort.gap / self.core.seconds_unit))
        least_seconds = least * self.core.seconds_unit - self._once_seconds
        return Proven(best.decoded, min(least_seconds, best.decoded.seconds)) if best else Proven(None, least_seconds)

    def _objective(self, seconds: float) -> float:
        """Return the program's objective for seconds beyond running everything once."""
        return (seconds + self._once_seconds) / self.core.seconds_unit

    @cached_property
    def _once_seconds(self) -> float:
        """The seconds of running once all operations that the program decides on."""
        ops, boundary = self.evaluator.problem.ops, self.evaluator.problem.forward_length
        backward = [repeatable.op for repeatable in self.core.cut.repeatables if repeatable.op >= boundary]
        return fsum(ops[index].seconds for index in [*self.block.needs, *backward])

    def _values_of(self, schedule: BlockSchedule) -> dict[str, float] | None:
        """Return values that describe a schedule, approximately where it repeats operations within a stage; or None."""
        core, operations = self.core, self.evaluator.operations
        place = {repeatable.op: place for place, repeatable in enumerate(core.cut.repeatables)}
        stage_of = {index: number for number, stage in enumerate(core.cut.stages) for index in stage.ops}
        chosen: list[set[int]] = [set() for _ in core.cut.stages]
        waiting: set[int] = set()
        begun = 0
        for position in schedule.backward:
            index = operations[position]
            if index in place:
                waiting.add(place[index])
                continue
            if stage_of[index] > begun or waiting:
                chosen[stage_of[index]] |= waiting
                waiting, begun = set(), stage_of[index]
        chosen[-1] |= waiting
        for stage, runs in enumerate(chosen):
            for repeatable in (core.cut.repeatables[index] for index in runs):
                if not repeatable.first <= stage <= repeatable.last:
                    return None
        values = self.moments.complete(core.values_of(chosen))
        forward = {operations[position] for position in schedule.forward}
        return values | {variable.name: float(index in forward) for index, variable in self._forward.items()}

    def _decode(self, answer: Answer) -> Solution[BlockSchedule]:
        """Return the schedule that a solution describes, with its objective and limits."""
        backward, stage_of, needed = self._without_useless_runs(self.core.ran(answer))
        schedule = self.evaluator.evaluate(self._forward_for(needed), tuple(backward))
        above_start_bytes = self.evaluator.run_peaks(backward)
        limit_bytes = self.moments.peak.most_bytes - schedule.backward_peak_bytes + max(above_start_bytes, default=0)
        run_peaks = zip(stage_of, above_start_bytes, strict=True)
        high = {stage for stage, peak_bytes in run_peaks if peak_bytes > limit_bytes}
        fits = not high and schedule.kept_bytes <= self.kept.most_bytes
        return Solution(schedule, self._objective(schedule.seconds), fits, frozenset(high))

    def _forward_for(self, required: set[int]) -> tuple[int, ...]:
        """Return the operations that forward must run for a backward that requires these values."""
        ops, needed, runs = self.evaluator.problem.ops, required & self.evaluator.local_values, set(self.block.must)
        for index in reversed(self.block.forward):
            if index in runs or not needed.isdisjoint(ops[index].makes):
                runs.add(index)
                needed |= set(ops[index].reads)
        return tuple(index for index in self.block.forward if index in runs)

    def _without_useless_runs(self, ran: list[list[int]]) -> tuple[list[int], list[int], set[int]]:
        """Return (operations of backward, their stages, values needed when it begins), without useless operations."""
        cut, ops = self.core.cut, self.evaluator.problem.ops
        needed = set(self.evaluator.after_backward)
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
