"""The interface that the portfolio requires of a solver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol, Self

from .disk_cache import DiskCache
from .problem.liveness import Candidate
from .problem.problem import Problem
from .problem.schedule import Schedule


class Solver(Protocol):
    """A frozen dataclass that yields candidates, the same ones for every budget.

    always_finishes: whether it takes so little time that no time limit stops it.
    is_slow: whether others come first when time is short.
    """

    always_finishes: ClassVar[bool] = False
    is_slow: ClassVar[bool] = False

    @property
    def name(self) -> str: ...

    def candidates(self, problem: Problem) -> Iterator[Candidate]: ...

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule: ...

    def with_cache(self, cache: DiskCache | None) -> Self:
        """Return the solver with a folder to share parts of its results in; without such parts it is the same."""
        return self

    def thinned(self) -> Self | None:
        """Return the solver with less work, to run once more for each choice of values to encode.

        None if it drops no values, so that none is to be encoded either.
        """
        return self
