"""Keep everything: the step as traced, nothing recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .problem.liveness import Candidate, schedule_of, trace_order
from .problem.problem import Problem
from .problem.schedule import Schedule
from .solver import Solver


@dataclass(frozen=True)
class KeepAll(Solver):
    """Keep every value, as eager does: least time, and the peak that percentages of a budget refer to.

    Guarantee: no schedule is faster. Cost: linear in the operations.
    """

    always_finishes = True
    name: str = "keep_all"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """Yield the only candidate."""
        yield Candidate("everything kept", trace_order(problem))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """Return the schedule, for any budget."""
        return schedule_of(problem, trace_order(problem))

    def thinned(self) -> None:
        """Return None: it drops no values."""
