"""The integer program of a whole step: the fastest run order under a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import fsum, inf

from ..problem.liveness import RunOrder, forecast
from ..problem.problem import Problem
from .answer import Answer, Effort
from .memory_rows import Moments
from .search import Search, Solution
from .stage_program import StageProgram
from .stages import Stages
from .step_stages import order_of, placed_in, runs_of


@dataclass(frozen=True, eq=False)
class Optimum:
    """The fastest order found under a budget, with a proven bound.

    order: None if none was found.
    seconds: of the order, infinite without one.
    least_seconds: a bound for all orders that the program can describe, infinite if there is none.
    """

    order: RunOrder | None
    seconds: float
    least_seconds: float


class StepProgram:
    """The program of a whole step, solved for one budget after another."""

    def __init__(self, problem: Problem, cut: Stages) -> None:
        self.problem, self.cut = problem, cut
        self.core = StageProgram(cut)
        self.core.program.minimize(self.core.costs())
        self.moments = Moments(self.core)
        self.search = Search(self.core, self.moments, self._decode, self._values_of)
        needs = [own.fixed_bytes + sum(cut.pieces[piece].size_bytes for piece in own.reads) for own in cut.stages]
        self.low_bytes = max(needs)  # no schedule peaks lower
        self._once_seconds = fsum(problem.ops[index].seconds for own in cut.stages for index in own.ops)

    def fastest(self, budget_bytes: int, effort: Effort, start: RunOrder | None = None) -> Optimum:
        """Return the fastest order whose peak is within a budget.

        effort: its gap is in seconds.
        start: an order to begin with.
        """
        if budget_bytes < self.low_bytes:
            return Optimum(None, inf, inf)
        self.moments.peak.limit(budget_bytes)
        incumbent = self._solution_of(placed_in(self.problem, self.cut, start)) if start is not None else None
        unit = self.core.seconds_unit
        best, least = self.search.best(
            incumbent if incumbent and incumbent.fits else None, replace(effort, gap=effort.gap / unit)
        )
        least_seconds = least * unit + self._once_seconds
        if best is None:
            return Optimum(None, inf, least_seconds)
        order = order_of(self.problem, self.cut, best.decoded)
        seconds = forecast(self.problem, order).seconds
        return Optimum(order, seconds, min(least_seconds, seconds))

    def _decode(self, answer: Answer) -> Solution[list[list[int]]]:
        return self._solution_of(self.core.ran(answer))

    def _solution_of(self, ran: list[list[int]]) -> Solution[list[list[int]]]:
        """Return the solution that runs these repeatable operations, by their places, in each stage."""
        runs = runs_of(self.problem, self.cut, ran)
        # each stage is a segment of its own, since forecast returns the peaks of segments
        seen = forecast(self.problem, tuple(map(tuple, runs)))
        limit = self.moments.peak.most_bytes
        high = {stage for stage, peak_bytes in enumerate(seen.segment_peaks) if peak_bytes > limit}
        objective = (seen.seconds - self._once_seconds) / self.core.seconds_unit
        return Solution(runs, objective, not high, frozenset(high))

    def _values_of(self, runs: list[list[int]]) -> dict[str, float]:
        place = {repeatable.op: place for place, repeatable in enumerate(self.cut.repeatables)}
        own = [set(stage.ops) for stage in self.cut.stages]
        chosen = [
            [place[index] for index in run_indices if index not in own[stage]] for stage, run_indices in enumerate(runs)
        ]
        return self.moments.complete(self.core.values_of(chosen))
