"""The interface that the portfolio requires of a solver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from .problem.liveness import Candidate
from .problem.problem import Problem
from .problem.schedule import Schedule


class Solver(Protocol):
    """A frozen dataclass that yields candidates, the same ones for every budget."""

    @property
    def name(self) -> str: ...

    def candidates(self, problem: Problem) -> Iterator[Candidate]: ...

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule: ...
