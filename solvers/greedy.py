"""Lower the highest moment by what costs the least time per byte, block class by block class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .envelope import cheapest_under
from .liveness import Candidate, schedule_of
from .problem import Problem
from .schedule import Schedule


@dataclass(frozen=True)
class Greedy:
    """Drops what is cheapest to rematerialize among what is alive at the highest moment."""

    name: str = "greedy"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """The ladder, from the highest peak down."""
        yield from ()

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest of the ladder that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)
