"""The exact solver: the fastest schedule of a whole step under a budget, by integer programming.

A step is a sequence of *stages* (`integer.stages.Stage`). Every operation that runs once ends one, and so do the first
run of a draw, the forward/backward boundary and the end (`integer.step_stages`). In a stage any repeatable operations
run, each at most once and in trace order, then the stage's own operation. Binary variables: A[s,v], value v is alive
when stage s begins; R[s,k], repeatable operation k runs in stage s. Let k(v) make v.

    A[s,v] + R[s,k(v)] >= 1                       v read by the stage's own operation    `StageProgram._state_reads`
    R[s,k] <= A[s,u] + R[s,k(u)]                  u read by k                            `StageProgram._state_runs`
    A[s+1,v] <= A[s,v] + R[s,k(v)]                unless the own operation makes v       `StageProgram._state_lives`
    A[s,v] + R[s,k(v)] <= 1                       a recomputed value was dropped         `StageProgram._state_lives`
    A[s+1,v] >= A[s,v], R[s,k(v)]                 v held                                 `StageProgram._state_lives`
    fixed[s] + sum of size[v], v read,
      + sum of size[v] · A[s+1,v], others <= peak the own operation runs                 `Moments._state_own`
    base[s] + momentary[k] · R[s,k]
      + sum of size[v] · needed(s,k,v) <= peak    k runs                                 `Moments._state_inner`
    needed(s,k,v) >= R[s,j], A[s+1,v]             v read by j, k or later                `Moments._state_needed`
    A[t,v] + R[t,k(v)] <= A[s,v] + f(u) ...       every value has an origin              `Ancestry`
    sum of (size[v] // d) · A <= (peak - fixed) // d     for sizes d                     `Limited.state`

The moments are exact without products of variables, since a value dies right after its last use. While the own
operation runs, only the values that it reads and those alive afterwards exist. Moments within a stage seldom bind; they
are stated for a stage once a solution rises above the limit there (`Search`). The objective is the time of all runs.

Checkmate (Jain et al., MLSys 2020, arXiv 1910.02653) has a stage for each operation and variables for each pair of
operations; Moccasin (Katebi et al. 2023, arXiv 2304.14463) has intervals of retention. Here only operations that run
once make a stage. Stages that cannot differ are merged (`integer.stages.merged`), useless runs and values have no
variable (`integer.stages.with_windows`), and inner moments are stated late. Two families of rows bring the relaxation
close to the integer optimum; without them it is of little use.

If gaps are cut into `rounds`, an operation may run twice before an own operation, and operations may leave trace
order. With enough rounds every schedule is described. Draws first run where the trace has them, relative to the
operations that run once, which is stricter than the rules of a schedule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

from .candidates.pareto import rate
from .greedy import Greedy
from .infeasible import infeasible
from .integer.answer import Effort
from .integer.stages import choices
from .integer.step_program import Optimum, StepProgram
from .integer.step_stages import stages_of_step
from .problem.liveness import Candidate, RunOrder, forecast, schedule_of, trace_order
from .problem.problem import Problem
from .problem.schedule import Schedule
from .problem.units import format_bytes
from .rockmate import Rockmate
from .solver import Solver


@dataclass(frozen=True)
class Checkmate(Solver):
    """Find the optimum over the whole graph, for graphs that are small enough.

    rounds: stages per gap between operations that run once.
    most_choices: the limit of variables of a program.
    node_limit: nodes of branch and bound for one budget.
    budgets: the number of budgets that candidates are made for.

    Guarantee: no schedule that the stages describe is faster, unless the nodes run out; `least_seconds` returns the
    proven bound. Cost: seconds for some hundred choices, minutes for some thousand.
    """

    rounds: int = 1
    most_choices: int = 6_000
    node_limit: int = 2_000
    budgets: int = 12
    name: str = "checkmate"

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """Return the fastest schedule within a budget.

        Raises InfeasibleBudget if there is none, or if none was found within `node_limit`; ValueError if the graph is
        too large.
        """
        optimum = self.least_seconds(problem, budget_bytes)
        if optimum.order is None:
            known = [rate(problem, self.name, Candidate("", order)) for order in self._known(problem)]
            smallest = min(known, key=lambda rated: rated.peak_bytes)
            reason = (
                "checkmate proves that there is none"
                if optimum.least_seconds == inf
                else "checkmate found none within its node limit"
            )
            raise infeasible(
                problem,
                budget_bytes,
                smallest,
                f"{reason}, the smallest peak known is {format_bytes(smallest.peak_bytes)}",
            )
        return schedule_of(problem, optimum.order)

    def least_seconds(self, problem: Problem, budget_bytes: int) -> Optimum:
        """Return the fastest order within a budget, with the proven bound.

        Raises ValueError if the graph is too large.
        """
        cut = stages_of_step(problem, self.rounds)
        if choices(cut) > self.most_choices:
            limit = f"more than checkmate's limit of {self.most_choices:,}"
            raise ValueError(f"{problem.name} has {choices(cut):,} choices, {limit}: choose solver='auto'")
        if budget_bytes < problem.floor_bytes:
            return Optimum(None, inf, inf)
        start = _fastest_within(problem, self._known(problem), budget_bytes)
        return StepProgram(problem, cut).fastest(budget_bytes, Effort(self.node_limit), start)

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """Yield the fastest orders for budgets between the lowest possible peak and the peak with everything kept.

        Graphs that are too large have no candidates.
        """
        cut = stages_of_step(problem, self.rounds)
        if choices(cut) > self.most_choices:
            return
        program, known = StepProgram(problem, cut), self._known(problem)
        high = forecast(problem, trace_order(problem)).peak_bytes
        for step in range(self.budgets + 1):
            budget_bytes = program.low_bytes + (high - program.low_bytes) * step // self.budgets
            start = _fastest_within(problem, known, budget_bytes)
            optimum = program.fastest(budget_bytes, Effort(self.node_limit), start)
            if optimum.order is not None:
                yield Candidate(f"the fastest within {format_bytes(budget_bytes)}", optimum.order)

    def _known(self, problem: Problem) -> list[RunOrder]:
        """Return orders to begin with."""
        others = (*Rockmate().candidates(problem), *Greedy().candidates(problem))
        return [trace_order(problem), *(candidate.order for candidate in others)]


def _fastest_within(problem: Problem, orders: list[RunOrder], budget_bytes: int) -> RunOrder | None:
    """Return the fastest of some orders within a budget, None if none fits."""
    forecasts = [(forecast(problem, order), order) for order in orders]
    fitting = [
        (prediction.seconds, number)
        for number, (prediction, _) in enumerate(forecasts)
        if prediction.peak_bytes <= budget_bytes
    ]
    return orders[min(fitting)[1]] if fitting else None
