"""The lower envelope of candidates: the fastest one for every budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .problem.encoded_problem import merged_problem
from .problem.errors import InfeasibleBudget
from .problem.liveness import Candidate, Choice, RunOrder, forecast
from .problem.problem import Problem


@dataclass(frozen=True, eq=False)
class Rated:
    """A candidate with its peak (bytes) and time (seconds), and the solver that offers it.

    choice: as in `Candidate`.
    """

    solver: str
    description: str
    order: RunOrder
    peak_bytes: int
    seconds: float
    choice: Choice = ()


def rate(problem: Problem, solver: str, candidate: Candidate) -> Rated:
    """The candidate with what it needs and takes."""
    seen = candidate.seen or forecast(merged_problem(problem, candidate.choice), candidate.order)
    peak_bytes = max(seen.peak_bytes, problem.floor_bytes)
    return Rated(solver, candidate.description, candidate.order, peak_bytes, seen.seconds, candidate.choice)


def envelope(rated: Iterable[Rated]) -> list[Rated]:
    """Those that no other beats in both peak and time, from the lowest peak to the highest.

    Of equals the first given stays. Going up in peak, time falls strictly: this is what makes answers
    monotone.
    """
    best: list[Rated] = []
    for one in sorted(rated, key=lambda one: (one.peak_bytes, one.seconds)):
        if not best or one.seconds < best[-1].seconds:
            best.append(one)
    return best


def cheapest_under(problem: Problem, candidates: Iterable[Candidate], budget_bytes: int) -> Rated:
    """The fastest candidate within the budget; of equals the one with the lower peak.

    Raises InfeasibleBudget if none is, ValueError if there are no candidates.
    """
    lowest = envelope(rate(problem, "", candidate) for candidate in candidates)
    if not lowest:
        raise ValueError(f"this solver has no schedule of {problem.name}")
    fitting = [one for one in lowest if one.peak_bytes <= budget_bytes]
    if not fitting:
        smallest = lowest[0].peak_bytes
        message = f"no candidate for {problem.name} fits {budget_bytes} bytes: the smallest needs {smallest} bytes"
        raise InfeasibleBudget(message, smallest, budget_bytes)
    return fitting[-1]
