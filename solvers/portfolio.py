"""All solvers together: one set of candidates per problem, and the best of it for every budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from math import inf
from time import perf_counter
from typing import Any

from .bound import proven_seconds
from .candidates.candidate_cache import cached_schedule
from .candidates.offers import Limit, Memory, Offer, rated_candidates
from .candidates.pareto import Rated, envelope
from .checkmate import Checkmate
from .disk_cache import DiskCache
from .encoding.decode_order import encoded_schedule
from .encoding.encoded_candidates import encoded_of, schedule_with_codes
from .encoding.refine_precision import lowest_error, with_lower_error
from .greedy import Greedy
from .infeasible import infeasible
from .keep_all import KeepAll
from .problem.errors import InfeasibleBudget, ScheduleError
from .problem.plan import Plan
from .problem.problem import Problem
from .problem.schedule import Schedule
from .problem.simulate import make_plan
from .problem.units import format_bytes
from .recipes import Recipes
from .rockmate import Rockmate
from .rotor import Rotor
from .solver import Solver

Progress = Callable[[float, str], None]


SOLVERS: tuple[Solver, ...] = (KeepAll(), Recipes(), Rockmate(), Greedy())
# Runs only if named: `rockmate` finds everything that it finds.
NAMED: tuple[Solver, ...] = (Rotor(),)
# Runs only if named, for one budget at a time, because it takes long.
EXACT = Checkmate()
SOLVER_NAMES = ("auto", *(solver.name for solver in (*SOLVERS, *NAMED, EXACT)))


def _retry_without_cache(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method with a second attempt that does not read the cache, for errors that stored entries cause."""

    @wraps(answer)
    def retry(portfolio: Portfolio, problem: Problem, *arguments: Any, **options: Any) -> Any:
        try:
            return answer(portfolio, problem, *arguments, **options)
        except InfeasibleBudget:
            raise
        except Exception:
            if portfolio.cache is None or portfolio.cache.refresh:
                raise
            fresh = replace(portfolio, cache=replace(portfolio.cache, refresh=True))
            result = answer(fresh, problem, *arguments, **options)
            portfolio._memory.update(fresh._memory)
            return result

    return retry


@dataclass(frozen=True)
class Portfolio:
    """Answer every budget from the lower envelope of all candidates of all solvers.

    The candidates are the same for every budget. So under one cost table a smaller budget never gives a higher peak or
    a shorter time. The only exception is the time that `lowest_error` spends on lower errors. No plan costs more than
    the best recipe that fits. Of candidates equally fast the one with the lower peak is taken, then the one whose
    solver comes first. Where values have encodings, candidates with values kept encoded (`Encoded`) are added, so that
    no budget is answered worse than without.

    solvers: those that run for "auto".
    named: those that run only if named.
    exact: the solver that runs only if named, for one budget at a time.
    cache: the folder that shares candidates and proofs between processes; None to compute them.

    Each portfolio keeps its candidates and proofs in memory.
    """

    solvers: tuple[Solver, ...] = SOLVERS
    named: tuple[Solver, ...] = NAMED
    exact: Checkmate = EXACT
    cache: DiskCache | None = field(default=DiskCache(), repr=False, compare=False)
    _memory: Memory = field(default_factory=Memory, init=False, repr=False, compare=False)

    @_retry_without_cache
    def solve(
        self,
        problem: Problem,
        budget_bytes: int,
        solver: str = "auto",
        progress: Progress | None = None,
        time_limit_seconds: float = inf,
    ) -> Plan:
        """Return the fastest plan that peaks at no more than `budget_bytes`.

        Of plans that keep values approximately and take at most a thousandth of a step longer, it is the one with the
        lowest error (`lowest_error`).

        solver: "auto" for all of `solvers`, or the name of one of `solvers` or `named`, or that of `exact`, which
            solves for this budget alone.
        progress: a callback for the share done and a description of the current work.
        time_limit_seconds: the time after which solvers begin no further candidate and the best so far is taken;
            recipes are always tried.

        Raises InfeasibleBudget if no candidate fits, ValueError if no solver has that name, or if the step is too large
        for it.
        """
        started = perf_counter()
        if solver == self.exact.name:
            if progress is not None:
                progress(0.0, f"{solver}: the fastest within {format_bytes(budget_bytes)}")
            find = partial(schedule_with_codes, problem, self.exact, budget_bytes)
            schedule = cached_schedule(self.cache, problem, self.exact, budget_bytes, find)
            return self._make_plan(problem, schedule, solver, budget_bytes, started, ())
        offered = self._offers(problem, solver, progress, Limit(time_limit_seconds))
        candidates = [candidate for offer in offered for candidate in offer.candidates]
        stops = [text for offer in offered for text in offer.describe_stop()]
        best_candidates = envelope(candidates)
        if not best_candidates:
            raise ValueError(f"{solver} has no candidate for {problem.name}: choose solver='auto'")
        fitting = [candidate for candidate in best_candidates if candidate.peak_bytes <= budget_bytes]
        if not fitting:
            raise infeasible(problem, budget_bytes, best_candidates[0], remarks=stops)
        best = lowest_error(problem, fitting, budget_bytes)
        notes = (*_explain_others(candidates, best, budget_bytes), *stops)
        return self._plan_of(problem, best, budget_bytes, started, notes)

    @_retry_without_cache
    def frontier(
        self, problem: Problem, count: int, progress: Progress | None = None, time_limit_seconds: float = inf
    ) -> list[Plan]:
        """Return at most `count` plans of the lower envelope, from the highest peak to the lowest.

        They are the answers of `solve` at the peaks of the fastest candidates for `count` budgets, each once. The
        budgets are spread evenly between the smallest peak and that of the fastest plan. The budget of each plan is
        that peak; its `solve_seconds` count from the start of the call.

        time_limit_seconds: as in `solve`; the notes of each plan name the solvers that were stopped.
        """
        started = perf_counter()
        offered = self._offers(problem, "auto", progress, Limit(time_limit_seconds))
        best_candidates = envelope(candidate for offer in offered for candidate in offer.candidates)
        stops = tuple(text for offer in offered for text in offer.describe_stop())
        low, high = best_candidates[0].peak_bytes, best_candidates[-1].peak_bytes
        peaks = [candidate.peak_bytes for candidate in best_candidates]
        spread = (high - (high - low) * step // max(count - 1, 1) for step in range(count))
        plans: dict[int, Plan] = {}
        for place in dict.fromkeys(bisect_right(peaks, budget_bytes) for budget_bytes in spread):
            best = lowest_error(problem, best_candidates[:place], peaks[place - 1])
            plan = self._plan_of(problem, best, peaks[place - 1], started, stops)
            plans[plan.peak_bytes] = plan
        return [plans[peak_bytes] for peak_bytes in sorted(plans, reverse=True)]

    def _offers(self, problem: Problem, solver: str, progress: Progress | None, limit: Limit) -> list[Offer]:
        """Return the rated candidates of one solver or of all, one offer per solver."""
        solvers = [candidate for candidate in (*self.solvers, *self.named) if candidate.name == solver]
        if solver == "auto":
            # solvers that find a good plan early come first when time is short
            hurried = limit.seconds < inf
            solvers = sorted(self.solvers, key=lambda member: hurried and member.is_slow)
        if not solvers:
            names = ", ".join(known.name for known in (*self.solvers, *self.named, self.exact))
            raise ValueError(f"there is no solver {solver!r}: choose among auto, {names}")
        solvers = [member.with_cache(self.cache) for member in solvers]
        encoding_solver = encoded_of(problem, solvers)
        count = len(solvers) + (encoding_solver is not None)
        offers: list[Offer] = []
        for done, member in enumerate(solvers):
            notify = progress and partial(_report_share, progress, done, count)
            own_limit = Limit() if member.always_finishes else limit
            candidates, is_named = rated_candidates(problem, member), solver != "auto"
            offers.append(self._memory.offer(self.cache, problem, member, candidates, own_limit, notify, is_named))
        if encoding_solver is not None:
            # candidates made from an incomplete set would differ the next time, so they are not kept on disk
            cache = self.cache if all(offer.stopped_seconds == inf for offer in offers) else None
            notify = progress and partial(_report_share, progress, len(solvers), count)
            plain = envelope(candidate for offer in offers for candidate in offer.candidates)
            candidates = encoding_solver.rated(problem, plain)
            offers.append(self._memory.offer(cache, problem, encoding_solver, candidates, limit, notify))
        if progress is not None:
            progress(1.0, "solved")
        return offers

    def _plan_of(
        self, problem: Problem, best: Rated, budget_bytes: int, started: float, notes: tuple[str, ...]
    ) -> Plan:
        schedule = encoded_schedule(problem, best.choice, best.order)
        plan = self._make_plan(problem, schedule, best.solver, budget_bytes, started, (best.description, *notes))
        if plan.peak_bytes != best.peak_bytes:
            raise ScheduleError(f"predicted {best.peak_bytes} bytes for a schedule that peaks at {plan.peak_bytes}")
        refined = with_lower_error(problem, schedule, budget_bytes)
        if refined is schedule:
            return plan
        return self._make_plan(problem, refined, best.solver, budget_bytes, started, (best.description, *notes))

    def _make_plan(
        self,
        problem: Problem,
        schedule: Schedule,
        solver: str,
        budget_bytes: int,
        started: float,
        notes: tuple[str, ...],
    ) -> Plan:
        """Return the plan of a schedule, with its proven bound."""
        bound = proven_seconds(problem, self._memory.proofs(self.cache, problem), budget_bytes)
        return make_plan(
            problem,
            schedule,
            solver=solver,
            budget_bytes=budget_bytes,
            lower_bound_seconds=bound,
            solve_seconds=perf_counter() - started,
            notes=notes,
        )


def _report_share(progress: Progress, done: int, count: int, number: int, text: str) -> None:
    """Report the share done: each candidate takes a fiftieth of the rest, as solvers do not know their number."""
    progress((done + 1 - 0.98**number) / count, text)


def _explain_others(candidates: Sequence[Rated], best: Rated, budget_bytes: int) -> tuple[str, ...]:
    """Return for every other solver the reason why it was not taken."""
    notes = []
    for name in dict.fromkeys(candidate.solver for candidate in candidates):
        offered = [candidate for candidate in candidates if candidate.solver == name]
        fitting = [candidate for candidate in offered if candidate.peak_bytes <= budget_bytes]
        if name == best.solver:
            continue
        if not fitting:
            needed = min(candidate.peak_bytes for candidate in offered)
            notes.append(f"{name} does not fit: it needs {format_bytes(needed)}")
            continue
        rival = min(fitting, key=lambda candidate: (candidate.seconds, candidate.peak_bytes))
        slower = rival.seconds - best.seconds
        if slower > 0:
            notes.append(f"{name} would take {slower:.3g} s more ({rival.description})")
        else:
            notes.append(f"{name} is as fast, at {format_bytes(rival.peak_bytes)} ({rival.description})")
    return tuple(notes)
