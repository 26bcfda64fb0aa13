"""From posed steps to plans: of all ways to make a step's gradients the fastest that fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from math import inf, isfinite
from time import perf_counter

from ...solvers.bound import lower_bound_seconds
from ...solvers.portfolio import Portfolio
from ...solvers.problem.errors import InfeasibleBudget, ScheduleError
from ...solvers.problem.plain_text import shortened
from ...solvers.problem.plan import Plan
from ...solvers.problem.problem import Problem
from ...solvers.problem.problem_diff import difference_of
from ...solvers.problem.simulate import make_plan
from ..errors import PlanError
from ..text.byte_sizes import Share, format_bytes, parse_bytes
from .loss_outside import everything_kept_bytes, note_of, peak_with_room, room_bytes, with_room
from .situation import rounding_bytes
from .step import PlannedStep, Progress, StepCosts, StepProblem

_LEAST_SECONDS = 1e-3  # for a solver: recipes are tried in any case
_GRAIN = 1e-3  # of a step's seconds, by which plans are told apart
_ERROR_SLACK = 1.25  # for a plan made elsewhere, whose errors were measured on other data


def solve_step(
    found: StepProblem,
    budget: int | str,
    portfolio: Portfolio,
    progress: Progress | None = None,
    given_plan: Plan | None = None,
) -> PlannedStep:
    """The plan of a posed step: the fastest one of those for all ways to make its gradients (`StepProblem.ways`); of
    plans equally fast that of the first way. Raises BudgetError, InfeasibleBudget.

    budget: a share is one of this step's peak with everything kept, a loss outside included. Of the budget the bytes
    of that loss are left where the step can be done so. given_plan: is taken instead of solving; PlanError if it is for
    another step or peaks above the budget here.
    """
    room = room_of(found.costs)
    budget_bytes = bytes_of(budget, everything_kept_bytes(found.posed.problem, room))
    if given_plan is not None:
        fitting = (way for way in found.ways if difference_of(way.posed.problem, given_plan.problem) is None)
        way = next(fitting, found)
        return PlannedStep(way.step, way.posed, _taken(given_plan, way.posed.problem, budget_bytes), way.costs)
    started = perf_counter()
    told = (lambda share, text: progress(0.6 + 0.4 * share, text)) if progress else None
    limit_seconds = found.costs.options.time_limit_seconds
    planned = _fastest(found, budget_bytes, portfolio, told, limit_seconds)
    if peak_with_room(planned.plan, room) > budget_bytes:
        left_seconds = max(limit_seconds - (perf_counter() - started), _LEAST_SECONDS)
        with suppress(InfeasibleBudget):
            roomy = _fastest(found, budget_bytes, portfolio, told, left_seconds, room)
            # What is proven without the room holds with it.
            bound = planned.plan.lower_bound_seconds
            planned = replace(roomy, plan=replace(roomy.plan, lower_bound_seconds=bound))
    notes = (*planned.plan.notes, *note_of(planned.plan, room, budget_bytes))
    return replace(planned, plan=replace(planned.plan, notes=notes))


def room_of(costs: StepCosts) -> int:
    """The bytes to leave for a loss outside of a step."""
    return room_bytes(costs.captured, rounding_bytes(costs.device, costs.options.preset()))


def _fastest(
    found: StepProblem,
    budget_bytes: int,
    portfolio: Portfolio,
    told: Progress | None,
    limit_seconds: float,
    room: int = 0,
) -> PlannedStep:
    """The fastest plan of all ways within a budget of which `room` bytes are left for a loss outside."""
    plans: list[PlannedStep] = []
    shortfalls: list[InfeasibleBudget] = []
    bounds: list[float | None] = []
    for way, left_seconds in _timed(found.ways, limit_seconds):
        problem = with_room(way.posed.problem, room)
        try:
            plan = portfolio.solve(problem, budget_bytes, found.costs.options.solver, told, left_seconds)
        except InfeasibleBudget as shortfall:
            shortfalls.append(shortfall)
            bounds.append(lower_bound_seconds(problem, budget_bytes))  # others may find what none did here
            continue
        bounds.append(plan.lower_bound_seconds)
        plans.append(PlannedStep(way.step, way.posed, _alone(plan, way.posed.problem), way.costs))
        if not plan.extra_seconds:
            break
    if not plans:
        raise min(shortfalls, key=lambda one: one.smallest_bytes)
    best = min(plans, key=lambda one: _grains(one.plan))
    known = [one for one in bounds if one is not None]
    return replace(best, plan=replace(best.plan, lower_bound_seconds=min(known) if len(known) == len(bounds) else None))


def _alone(plan: Plan, problem: Problem) -> Plan:
    """A plan as it is without the room for a loss outside. problem: its own, without that."""
    if plan.problem is problem:
        return plan
    return make_plan(
        problem,
        plan.schedule,
        solver=plan.solver,
        budget_bytes=plan.budget_bytes,
        solve_seconds=plan.solve_seconds,
        notes=plan.notes,
    )


def _timed(ways: Iterable[StepProblem], limit_seconds: float) -> Iterator[tuple[StepProblem, float]]:
    """Each way with what those before have left of a time limit for solving: measuring a way does not count."""
    for way in ways:
        started = perf_counter()
        yield way, limit_seconds
        limit_seconds = max(limit_seconds - (perf_counter() - started), _LEAST_SECONDS)


def _grains(plan: Plan) -> int:
    """What a plan takes, in thousandths of the step's time."""
    return round(plan.seconds / (_GRAIN * plan.baseline_seconds or 1.0))


def frontier_of(
    found: StepProblem, count: int, portfolio: Portfolio, progress: Progress | None, time_limit_seconds: float
) -> list[Plan]:
    """At most `count` plans of the frontier of a posed step, all ways to make its gradients together."""
    frontiers = [
        portfolio.frontier(way.posed.problem, count, progress, left_seconds)
        for way, left_seconds in _timed(found.ways, time_limit_seconds)
    ]
    if len(frontiers) == 1:
        return frontiers[0]
    lowest: list[Plan] = []
    least = inf, inf
    for plan in sorted(chain.from_iterable(frontiers), key=lambda one: (one.peak_bytes, one.seconds)):
        worth = _grains(plan), plan.encoding_error  # equally fast ones have smaller errors in more bytes
        if worth < least:
            lowest.append(plan)
            least = worth
    return spread_out(lowest[::-1], count)


def spread_out(plans: Sequence[Plan], count: int) -> list[Plan]:
    """At most `count` of a frontier's plans, spread evenly over their peaks, with the first and the last."""
    high, low = plans[0].peak_bytes, plans[-1].peak_bytes
    chosen: dict[int, Plan] = {}
    for step in range(count):
        budget_bytes = high - (high - low) * step // max(count - 1, 1)
        best = next(plan for plan in plans if plan.peak_bytes <= budget_bytes)
        chosen[best.peak_bytes] = best
    return list(chosen.values())


def bytes_of(budget: int | str, whole_bytes: int) -> int:
    """A budget in bytes; a share is one of `whole_bytes`. Raises BudgetError."""
    wanted = parse_bytes(budget)
    return int(wanted.fraction * whole_bytes) if isinstance(wanted, Share) else wanted


def smallest_step(found: StepProblem, portfolio: Portfolio, progress: Progress | None = None) -> PlannedStep:
    """The plan of the smallest peak, of all ways to make the step's gradients."""
    limit_seconds = found.costs.options.time_limit_seconds
    plans = [
        PlannedStep(
            way.step, way.posed, portfolio.frontier(way.posed.problem, 2, progress, left_seconds)[-1], way.costs
        )
        for way, left_seconds in _timed(found.ways, limit_seconds)
    ]
    return min(plans, key=lambda planned: planned.plan.peak_bytes)


def _taken(given: Plan, problem: Problem, budget_bytes: int) -> Plan:
    """A plan that was made elsewhere, simulated with the costs found here."""
    difference = difference_of(problem, given.problem)
    if difference is not None:
        raise PlanError(
            f"the plan was made for another step: {shortened(difference)}; pass the options and inputs that it was "
            "made with, or make a new one"
        )
    _check_errors(given, problem)
    allowed = replace(problem, error_budget=problem.error_budget * _ERROR_SLACK)
    try:
        plan = make_plan(allowed, given.schedule, solver=given.solver, budget_bytes=budget_bytes, notes=given.notes)
    except ScheduleError as error:
        raise PlanError(f"the plan cannot be taken over: {shortened(str(error))}; make a new one") from error
    if plan.peak_bytes > budget_bytes:
        raise PlanError(
            f"the plan peaks at {format_bytes(plan.peak_bytes)} here, above the budget of "
            f"{format_bytes(budget_bytes)}: "
            f"it was made for {format_bytes(given.peak_bytes)}; raise the budget or make a new plan"
        )
    return plan


def _check_errors(given: Plan, problem: Problem) -> None:
    """Raises PlanError if the codes of a plan add more here than they may."""
    added = problem.error_of(given.encoded)
    if not added <= problem.error_budget * _ERROR_SLACK:
        told = f"{added:.2g} of" if isfinite(added) else "more than can be told to"
        raise PlanError(
            f"the plan's codes add {told} the gradient's own variance on these inputs, where error_budget="
            f"{problem.error_budget:g} and a quarter of it are allowed; they were planned to add "
            f"{given.encoding_error:.2g}: raise error_budget or make a new plan"
        )
