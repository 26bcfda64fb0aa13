"""All solvers together: one ladder of candidates per problem, and the best of it for every budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from math import inf
from time import perf_counter
from typing import Any

from .bound import Proof, proven_seconds
from .candidate_cache import cached_candidates, cached_proofs, cached_schedule
from .disk_cache import DiskCache
from .dp import Dp
from .encoding.choices import choices_of
from .encoding.decode_order import encoded_schedule
from .encoding.encoded_candidates import Encoded, schedule_with_codes
from .encoding.refine_precision import lowest_error, with_lower_error
from .greedy import Greedy
from .hierarchical import Hierarchical
from .ilp import Ilp
from .infeasible import infeasible
from .keep_all import KeepAll
from .pareto import Rated, envelope, rate
from .problem.errors import InfeasibleBudget, ScheduleError
from .problem.plan import Plan
from .problem.problem import Problem
from .problem.schedule import Schedule
from .problem.simulate import make_plan
from .problem.units import format_bytes
from .recipes import Recipes
from .solver import Solver

Progress = Callable[[float, str], None]
Told = Callable[[int, str], None]


SOLVERS: tuple[Solver, ...] = (KeepAll(), Recipes(), Hierarchical(), Greedy())
# Asked by name only: what it finds is contained in what `hierarchical` finds.
NAMED: tuple[Solver, ...] = (Dp(),)
# Asked by name only, for one budget at a time, as it takes long.
EXACT = Ilp()
SOLVER_NAMES = ("auto", *(solver.name for solver in (*SOLVERS, *NAMED, EXACT)))
# Of what is solved once more for each choice of values to encode: these shares of the work find as much.
_FEWER_RUNGS = 2
_FEWER_VISITS = 8
_MOST_LADDERS = 64  # held in memory, some megabytes each for deep models: of about a dozen kinds of calls
_ALWAYS_FINISH = ("keep_all", "recipes")  # however short the time, so that no recipe that fits is better


class _OutOfTime(Exception):
    """A solver was stopped; what it has found by then."""

    def __init__(self, found: list[Rated]) -> None:
        super().__init__()
        self.found = tuple(found)


@dataclass(frozen=True)
class _Limit:
    """When to begin nothing more: so many seconds after it was set."""

    seconds: float = inf
    started: float = field(default_factory=perf_counter)

    @property
    def is_over(self) -> bool:
        return perf_counter() > self.started + self.seconds


@dataclass(frozen=True, eq=False)
class _Ladder:
    """The candidates of a solver. stopped_seconds: the time limit at which it was stopped, infinite if it was not."""

    name: str
    rungs: tuple[Rated, ...]
    stopped_seconds: float = inf

    def stops(self) -> Iterator[str]:
        """That it was stopped, if so."""
        if self.stopped_seconds < inf:
            yield f"{self.name} was stopped at the time limit of {self.stopped_seconds:g} s"


def _found_anew(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Has a question asked again, without reading the cache, where what lies there leads to an error."""

    @wraps(answer)
    def asked(portfolio: Portfolio, problem: Problem, *arguments: Any, **options: Any) -> Any:
        try:
            return answer(portfolio, problem, *arguments, **options)
        except InfeasibleBudget:
            raise
        except Exception:
            if portfolio.cache is None or portfolio.cache.anew:
                raise
            fresh = replace(portfolio, cache=replace(portfolio.cache, anew=True))
            told = answer(fresh, problem, *arguments, **options)
            portfolio._ladders.update(fresh._ladders)
            portfolio._proofs.update(fresh._proofs)
            return told

    return asked


@dataclass(frozen=True)
class Portfolio:
    """Answers every budget from the lower envelope of all candidates of all solvers.

    The candidates are the same for every budget, so under one cost table a smaller budget never gives a
    higher peak or a shorter time (but for what `gentlest` gives for smaller errors), and no plan costs more than the
    best recipe that fits. Of candidates
    equally fast the one with the lower peak is taken, then the one whose solver comes first. Where values have
    encodings, the solvers' candidates are joined by those with values kept encoded (`Encoded`), so that no budget is
    answered worse than without.

    cache: where candidates and proofs are kept for other processes; None to find them anew. Each portfolio keeps in
    memory what it has found.
    """

    solvers: tuple[Solver, ...] = SOLVERS
    named: tuple[Solver, ...] = NAMED
    exact: Ilp = EXACT
    cache: DiskCache | None = field(default=DiskCache(), repr=False, compare=False)
    _ladders: dict[tuple[Problem, str], _Ladder] = field(default_factory=dict, init=False, repr=False, compare=False)
    _proofs: dict[Problem, tuple[Proof, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @_found_anew
    def solve(
        self,
        problem: Problem,
        budget_bytes: int,
        solver: str = "auto",
        progress: Progress | None = None,
        time_limit_seconds: float = inf,
    ) -> Plan:
        """The fastest plan that peaks at no more than `budget_bytes`; of those that keep values approximately and take
        no more than a thousandth of a step longer, the one with the smallest errors (`gentlest`).

        solver: "auto" for all of `solvers`, or the name of one of them or of `named`, or that of `exact`, which is
        asked for this budget alone. progress: told the share done and what is being done. time_limit_seconds: after
        which solvers begin no other candidate, and the best so far is taken; recipes are always tried.

        Raises InfeasibleBudget if no candidate fits, ValueError if there is no solver of that name, or if it does not
        take steps as large as this one.
        """
        started = perf_counter()
        if solver == self.exact.name:
            if progress is not None:
                progress(0.0, f"{solver}: the fastest within {format_bytes(budget_bytes)}")
            find = partial(schedule_with_codes, problem, self.exact, budget_bytes)
            schedule = cached_schedule(self.cache, problem, self.exact, budget_bytes, find)
            return self._simulated(problem, schedule, solver, budget_bytes, started, ())
        ladders = self._offered(problem, solver, progress, _Limit(time_limit_seconds))
        ladder = [one for told in ladders for one in told.rungs]
        stops = [text for told in ladders for text in told.stops()]
        lowest = envelope(ladder)
        if not lowest:
            raise ValueError(f"{solver} has no schedule of {problem.name}: choose solver='auto'")
        fitting = [one for one in lowest if one.peak_bytes <= budget_bytes]
        if not fitting:
            raise infeasible(problem, budget_bytes, lowest[0], beside=stops)
        best = lowest_error(problem, fitting, budget_bytes)
        notes = (*_why(ladder, best, budget_bytes), *stops)
        return self._plan(problem, best, budget_bytes, started, notes)

    @_found_anew
    def frontier(
        self, problem: Problem, count: int, progress: Progress | None = None, time_limit_seconds: float = inf
    ) -> list[Plan]:
        """At most `count` plans of the lower envelope, from the highest peak to the lowest.

        They are what `solve` answers at the peaks of the fastest candidates for `count` budgets spread evenly between
        the smallest peak and that of the fastest plan, each once; the budget of each is that peak, its time that until
        it was there.
        time_limit_seconds: as in `solve`; the notes of each plan tell what was stopped.
        """
        started = perf_counter()
        ladders = self._offered(problem, "auto", progress, _Limit(time_limit_seconds))
        lowest = envelope(one for told in ladders for one in told.rungs)
        stops = tuple(text for told in ladders for text in told.stops())
        low, high = lowest[0].peak_bytes, lowest[-1].peak_bytes
        peaks = [one.peak_bytes for one in lowest]
        spread = (high - (high - low) * step // max(count - 1, 1) for step in range(count))
        found: dict[int, Plan] = {}
        for place in dict.fromkeys(bisect_right(peaks, budget_bytes) for budget_bytes in spread):
            best = lowest_error(problem, lowest[:place], peaks[place - 1])
            plan = self._plan(problem, best, peaks[place - 1], started, stops)
            found[plan.peak_bytes] = plan
        return [found[peak_bytes] for peak_bytes in sorted(found, reverse=True)]

    def _offered(self, problem: Problem, solver: str, progress: Progress | None, limit: _Limit) -> list[_Ladder]:
        """The candidates of one solver or of all, rated."""
        asked = [one for one in (*self.solvers, *self.named) if one.name == solver]
        if solver == "auto":
            # what finds something good soon comes first when time is short
            hurried = limit.seconds < inf
            asked = sorted(self.solvers, key=lambda one: hurried and isinstance(one, Hierarchical))
        if not asked:
            names = ", ".join(one.name for one in (*self.solvers, *self.named, self.exact))
            raise ValueError(f"there is no solver {solver!r}: choose among auto, {names}")
        asked = [self._with_cache(one) for one in asked]
        encoded = _encoded(problem, asked)
        count = len(asked) + (encoded is not None)
        offered: list[_Ladder] = []
        for done, one in enumerate(asked):
            told = progress and partial(_tell, progress, done, count)
            own = _Limit() if one.name in _ALWAYS_FINISH else limit
            find = partial(_candidates, problem, one, own, told)
            offered.append(self._found(problem, one, own, find, must_begin=solver != "auto"))
        if encoded is not None:
            # what is made of candidates that are not all there is not what it would be another time
            complete = all(one.stopped_seconds == inf for one in offered)
            told = progress and partial(_tell, progress, len(asked), count)
            plain = envelope(one for ladder in offered for one in ladder.rungs)
            find = partial(_lowest, encoded.rated(problem, plain), encoded.name, limit, told)
            offered.append(self._found(problem, encoded, limit, find, keep=complete))
        if progress is not None:
            progress(1.0, "solved")
        return offered

    def _found(
        self,
        problem: Problem,
        solver: Solver | Encoded,
        limit: _Limit,
        find: Callable[[], list[Rated]],
        must_begin: bool = False,
        keep: bool = True,
    ) -> _Ladder:
        """The candidates that `find` finds, from before if they are known; those found within the limit if it takes
        longer, none if the limit is over already and the solver need not begin."""
        key = problem, repr(solver)
        known = self._ladders.get(key)
        if known is None or known.stopped_seconds < limit.seconds:
            try:
                if limit.is_over and not must_begin:
                    raise _OutOfTime([])
                known = _Ladder(
                    solver.name, tuple(cached_candidates(self.cache if keep else None, problem, solver, find))
                )
            except _OutOfTime as stopped:
                known = _Ladder(solver.name, stopped.found, limit.seconds)
            self._ladders[key] = known
            _forget_oldest(self._ladders, _MOST_LADDERS)
        return known

    def _with_cache(self, solver: Solver) -> Solver:
        return replace(solver, cache=self.cache) if isinstance(solver, Hierarchical) else solver

    def _plan(self, problem: Problem, best: Rated, budget_bytes: int, started: float, notes: tuple[str, ...]) -> Plan:
        schedule = encoded_schedule(problem, best.choice, best.order)
        plan = self._simulated(problem, schedule, best.solver, budget_bytes, started, (best.description, *notes))
        if plan.peak_bytes != best.peak_bytes:
            raise ScheduleError(f"forecast {best.peak_bytes} bytes for a schedule that peaks at {plan.peak_bytes}")
        gentle = with_lower_error(problem, schedule, budget_bytes)
        if gentle is schedule:
            return plan
        return self._simulated(problem, gentle, best.solver, budget_bytes, started, (best.description, *notes))

    def _simulated(
        self,
        problem: Problem,
        schedule: Schedule,
        solver: str,
        budget_bytes: int,
        started: float,
        notes: tuple[str, ...],
    ) -> Plan:
        """The plan of a schedule, with what is proven."""
        if problem not in self._proofs:
            self._proofs[problem] = cached_proofs(self.cache, problem)
            _forget_oldest(self._proofs, _MOST_LADDERS)
        bound = proven_seconds(problem, self._proofs[problem], budget_bytes)
        return make_plan(
            problem,
            schedule,
            solver=solver,
            budget_bytes=budget_bytes,
            lower_bound_seconds=bound,
            solve_seconds=perf_counter() - started,
            notes=notes,
        )


def _encoded(problem: Problem, asked: Sequence[Solver]) -> Encoded | None:
    """What plans with values encoded, with the solvers asked; None if nothing is to be encoded."""
    able = [one for one in asked if not isinstance(one, KeepAll)]
    if not able or not choices_of(problem):
        return None
    main = next((one for one in able if isinstance(one, Hierarchical)), able[-1])
    if isinstance(main, Hierarchical):
        dp = replace(main.dp, rungs=max(main.dp.rungs // _FEWER_RUNGS, 1))
        main = replace(main, dp=dp, visits=main.visits // _FEWER_VISITS)
    return Encoded(tuple(asked), main)


def _forget_oldest(found: dict[Any, Any], most: int) -> None:
    """Leave so many entries, those put there last."""
    while len(found) > most:
        del found[next(iter(found))]


def _candidates(problem: Problem, solver: Solver, limit: _Limit, told: Told | None) -> list[Rated]:
    """The candidates of a solver that no other of its own beats."""
    offered = (rate(problem, solver.name, candidate) for candidate in solver.candidates(problem))
    return _lowest(offered, solver.name, limit, told)


def _lowest(offered: Iterable[Rated], solver: str, limit: _Limit, told: Told | None) -> list[Rated]:
    """The envelope of what a solver offers within a limit; told: the number of each and what it is."""
    best: list[Rated] = []
    late = False
    for number, one in enumerate(offered, 1):
        if told is not None:
            told(number, f"{solver}: {one.description}")
        # at once, as the orders of all candidates would fill hundreds of megabytes for deep models
        best = envelope([*best, one])
        if late:
            raise _OutOfTime(best)
        late = limit.is_over
    return best


def _tell(progress: Progress, done: int, solvers: int, number: int, text: str) -> None:
    """Tell the share done: a solver does not say how many candidates it has, each takes a fiftieth of what is left."""
    progress((done + 1 - 0.98**number) / solvers, text)


def _why(ladder: Sequence[Rated], best: Rated, budget_bytes: int) -> tuple[str, ...]:
    """For every other solver why it was not taken."""
    notes = []
    for name in dict.fromkeys(one.solver for one in ladder):
        own = [one for one in ladder if one.solver == name]
        fitting = [one for one in own if one.peak_bytes <= budget_bytes]
        if name == best.solver:
            continue
        if not fitting:
            needed = min(one.peak_bytes for one in own)
            notes.append(f"{name} does not fit: it needs {format_bytes(needed)}")
            continue
        rival = min(fitting, key=lambda one: (one.seconds, one.peak_bytes))
        slower = rival.seconds - best.seconds
        if slower > 0:
            notes.append(f"{name} would take {slower:.3g} s more ({rival.description})")
        else:
            notes.append(f"{name} is as fast, at {format_bytes(rival.peak_bytes)} ({rival.description})")
    return tuple(notes)
