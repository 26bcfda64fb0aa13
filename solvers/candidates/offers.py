"""Finds the candidates of solvers within a time limit, and remembers them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import inf
from time import perf_counter
from typing import Any, Protocol

from ..bound import Proof
from ..disk_cache import DiskCache
from ..problem.problem import Problem
from ..solver import Solver
from .candidate_cache import cached_candidates, cached_proofs
from .pareto import Rated, envelope, rate

Notify = Callable[[int, str], None]

_MOST_REMEMBERED = 64  # entries kept in memory, some megabytes each for deep models: about a dozen kinds of calls


@dataclass(frozen=True)
class Limit:
    """A time limit, in seconds from its creation, after which no further candidate begins."""

    seconds: float = inf
    started: float = field(default_factory=perf_counter)

    @property
    def is_over(self) -> bool:
        return perf_counter() > self.started + self.seconds


@dataclass(frozen=True, eq=False)
class Offer:
    """The candidates of a solver.

    stopped_seconds: the time limit at which the solver was stopped, infinite if it was not.
    """

    name: str
    candidates: tuple[Rated, ...]
    stopped_seconds: float = inf

    def describe_stop(self) -> Iterator[str]:
        """Yield a note if the solver was stopped."""
        if self.stopped_seconds < inf:
            yield f"{self.name} was stopped at the time limit of {self.stopped_seconds:g} s"


class Named(Protocol):
    """A dataclass whose name and `repr` identify its candidates for a problem."""

    @property
    def name(self) -> str: ...


class Memory:
    """The candidates and proofs of the problems solved last, in this process."""

    def __init__(self) -> None:
        self._offers: dict[tuple[Problem, str], Offer] = {}
        self._proofs: dict[Problem, tuple[Proof, ...]] = {}

    def offer(
        self,
        cache: DiskCache | None,
        problem: Problem,
        solver: Named,
        candidates: Iterator[Rated],
        limit: Limit,
        notify: Notify | None,
        must_begin: bool = False,
    ) -> Offer:
        """Return the candidates of a solver, from here or the cache if they are known.

        If finding them exceeds the limit, they are those found until then. They are none if the limit is over already
        and the solver need not begin.

        candidates: the solver's, found as they are asked for.
        notify: a callback for the number and the description of each candidate found.
        must_begin: whether the solver begins even after the limit.
        """
        key = problem, repr(solver)
        known = self._offers.get(key)
        if known is None or known.stopped_seconds < limit.seconds:
            try:
                if limit.is_over and not must_begin:
                    raise _OutOfTime([])
                find = partial(_lowest, candidates, solver.name, limit, notify)
                known = Offer(solver.name, tuple(cached_candidates(cache, problem, solver, find)))
            except _OutOfTime as stopped:
                known = Offer(solver.name, stopped.candidates, limit.seconds)
            self._offers[key] = known
            _forget_oldest(self._offers)
        return known

    def proofs(self, cache: DiskCache | None, problem: Problem) -> tuple[Proof, ...]:
        """Return the proofs of a problem's bound, from here or the cache if they are known."""
        if problem not in self._proofs:
            self._proofs[problem] = cached_proofs(cache, problem)
            _forget_oldest(self._proofs)
        return self._proofs[problem]

    def update(self, other: Memory) -> None:
        """Take over what another memory holds."""
        self._offers.update(other._offers)
        self._proofs.update(other._proofs)


class _OutOfTime(Exception):
    """A solver was stopped at the time limit.

    candidates: those found until then.
    """

    def __init__(self, candidates: list[Rated]) -> None:
        super().__init__()
        self.candidates = tuple(candidates)


def rated_candidates(problem: Problem, solver: Solver) -> Iterator[Rated]:
    """Yield the candidates of a solver with their peaks and times."""
    for candidate in solver.candidates(problem):
        yield rate(problem, solver.name, candidate)


def _lowest(candidates: Iterable[Rated], solver: str, limit: Limit, notify: Notify | None) -> list[Rated]:
    """Return the envelope of the candidates that a solver yields. Raises _OutOfTime with those of a part."""
    best: list[Rated] = []
    late = False
    for number, candidate in enumerate(candidates, 1):
        if notify is not None:
            notify(number, f"{solver}: {candidate.description}")
        # after each candidate, because the orders of all would fill hundreds of megabytes for deep models
        best = envelope([*best, candidate])
        if late:
            raise _OutOfTime(best)
        late = limit.is_over
    return best


def _forget_oldest(entries: dict[Any, Any]) -> None:
    """Remove the oldest entries beyond the limit."""
    while len(entries) > _MOST_REMEMBERED:
        del entries[next(iter(entries))]
