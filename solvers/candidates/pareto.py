"""The lower envelope of candidates: the fastest one for every budget."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..problem.encoded_problem import merged_problem
from ..problem.errors import InfeasibleBudget
from ..problem.liveness import Candidate, Choice, RunOrder, forecast
from ..problem.problem import Problem


@dataclass(frozen=True, eq=False)
class Rated:
    """A candidate with its peak in bytes, its time in seconds, and the name of its solver.

    choice: as in `Candidate`.
    """

    solver: str
    description: str
    order: RunOrder
    peak_bytes: int
    seconds: float
    choice: Choice = ()


def rate(problem: Problem, solver: str, candidate: Candidate) -> Rated:
    """Return the candidate with its peak and time."""
    prediction = candidate.forecast or forecast(merged_problem(problem, candidate.choice), candidate.order)
    peak_bytes = max(prediction.peak_bytes, problem.floor_bytes)
    return Rated(solver, candidate.description, candidate.order, peak_bytes, prediction.seconds, candidate.choice)


def envelope(rated: Iterable[Rated]) -> list[Rated]:
    """Return the candidates that no other beats in both peak and time, from the lowest peak to the highest.

    Of equals the first given stays. Time falls strictly as the peak rises, which makes answers monotone.
    """
    best: list[Rated] = []
    for candidate in sorted(rated, key=lambda candidate: (candidate.peak_bytes, candidate.seconds)):
        if not best or candidate.seconds < best[-1].seconds:
            best.append(candidate)
    return best


def cheapest_under(problem: Problem, candidates: Iterable[Candidate], budget_bytes: int) -> Rated:
    """Return the fastest candidate within the budget; of equals the one with the lower peak.

    Raises InfeasibleBudget if none fits, ValueError if there are no candidates.
    """
    lowest = envelope(rate(problem, "", candidate) for candidate in candidates)
    if not lowest:
        raise ValueError(f"this solver has no candidate for {problem.name}: choose another solver")
    fitting = [candidate for candidate in lowest if candidate.peak_bytes <= budget_bytes]
    if not fitting:
        smallest = lowest[0].peak_bytes
        needs = f"the smallest needs {smallest} bytes; raise the budget"
        message = f"no candidate for {problem.name} fits {budget_bytes} bytes: {needs}"
        raise InfeasibleBudget(message, smallest, budget_bytes)
    return fitting[-1]
