"""The exact solver: the fastest schedule of a whole step under a budget, by integer programming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import fsum, inf

from .errors import InfeasibleBudget
from .ilp_moments import Moments
from .ilp_program import StageProgram
from .ilp_search import Reading, Search
from .ilp_stages import Stages
from .ilp_step import order_of, runs_of, stages_of_step
from .infeasible import told_bytes
from .integer_program import Answer, Effort
from .keep_all import trace_order
from .liveness import Candidate, RunOrder, forecast, schedule_of
from .problem import Problem
from .schedule import Schedule


@dataclass(frozen=True, eq=False)
class Optimum:
    """The fastest order found under a budget, None if none was, and the seconds that no order goes below (infinite if
    there is none)."""

    order: RunOrder | None
    seconds: float
    least_seconds: float


@dataclass(frozen=True)
class Ilp:
    """The optimum over the whole graph, for graphs small enough."""

    rounds: int = 1
    most_choices: int = 6_000
    node_limit: int = 10_000
    steps: int = 12
    name: str = "ilp"

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest schedule within the budget.

        Raises InfeasibleBudget if there is none, ValueError if the graph is too large.
        """
        optimum = self._program(problem).fastest(budget_bytes, Effort(self.node_limit))
        if optimum.order is None:
            message = f"no schedule of {problem.name} within {told_bytes(budget_bytes)} was found"
            raise InfeasibleBudget(message, budget_bytes + 1, budget_bytes)
        return schedule_of(problem, optimum.order)

    def least_seconds(self, problem: Problem, budget_bytes: int) -> Optimum:
        """The fastest order with what is proven."""
        return self._program(problem).fastest(budget_bytes, Effort(self.node_limit))

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """The fastest orders for a ladder of budgets."""
        cut = stages_of_step(problem, self.rounds)
        if choices(cut) > self.most_choices:
            return
        program = StepProgram(problem, cut)
        high = forecast(problem, trace_order(problem)).peak_bytes
        low = program.low_bytes
        for step in range(self.steps):
            budget_bytes = high - (high - low) * step // self.steps
            optimum = program.fastest(budget_bytes, Effort(self.node_limit))
            if optimum.order is not None:
                yield Candidate(f"fastest within {told_bytes(budget_bytes)}", optimum.order)

    def _program(self, problem: Problem) -> StepProgram:
        cut = stages_of_step(problem, self.rounds)
        if choices(cut) > self.most_choices:
            raise ValueError(f"{problem.name} takes {choices(cut)} choices, more than ilp's {self.most_choices}")
        return StepProgram(problem, cut)


def choices(cut: Stages) -> int:
    """How many variables the program of these stages has, more or less."""
    runs = sum(max(one.last - one.first + 1, 0) for one in cut.repeatables)
    return runs + sum(max(last - first + 1, 0) for first, last in cut.alive)


class StepProgram:
    """The program of a whole step, solved for one budget after another."""

    def __init__(self, problem: Problem, cut: Stages) -> None:
        self.problem, self.cut = problem, cut
        self.core = StageProgram(cut)
        self.core.program.minimize(self.core.costs())
        self.moments = Moments(self.core)
        self.search = Search(self.core, self.moments, self._read, self._values_of)
        needs = [own.fixed_bytes + sum(cut.pieces[piece].size_bytes for piece in own.reads) for own in cut.stages]
        self.low_bytes = max(needs)  # no schedule peaks lower
        self._once_seconds = fsum(problem.ops[index].seconds for own in cut.stages for index in own.ops)

    def fastest(self, budget_bytes: int, effort: Effort) -> Optimum:
        """The fastest order whose peak is within a budget."""
        if budget_bytes < self.low_bytes:
            return Optimum(None, inf, inf)
        self.moments.peak.limit(budget_bytes)
        unit = self.core.seconds_unit
        best, least = self.search.best(None, replace(effort, gap=effort.gap / unit))
        least_seconds = least * unit + self._once_seconds
        if best is None:
            return Optimum(None, inf, least_seconds)
        seconds = best.objective * unit + self._once_seconds
        order = order_of(self.problem, self.cut, best.found)
        return Optimum(order, forecast(self.problem, order).seconds, min(least_seconds, seconds))

    def _read(self, answer: Answer) -> Reading[list[list[int]]]:
        """What a solution runs in each stage."""
        runs = runs_of(self.problem, self.cut, self.core.ran(answer))
        # each stage for a segment of its own: forecast tells the peaks of segments
        seen = forecast(self.problem, tuple(map(tuple, runs)))
        limit = self.moments.peak.most_bytes
        high = {stage for stage, peak_bytes in enumerate(seen.segment_peaks) if peak_bytes > limit}
        objective = (seen.seconds - self._once_seconds) / self.core.seconds_unit
        return Reading(runs, objective, not high, frozenset(high))

    def _values_of(self, runs: list[list[int]]) -> dict[str, float]:
        place = {one.op: place for place, one in enumerate(self.cut.repeatables)}
        own = [set(stage.ops) for stage in self.cut.stages]
        chosen = [[place[i] for i in inside if i not in own[stage]] for stage, inside in enumerate(runs)]
        return self.moments.complete(self.core.values_of(chosen))
