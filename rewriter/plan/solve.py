"""Solves step problems: of all variants of a step, finds the fastest plan that fits."""

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
from ..text.byte_sizes import Share, format_bytes
from .loss_outside import everything_kept_bytes, note_of, peak_with_room, with_room
from .progress import Progress
from .step_problem import PlannedStep, StepProblem, Variants

_LEAST_SECONDS = 1e-3  # for a solver: recipes are tried in any case
_TIME_RESOLUTION = 1e-3  # of a step's seconds: plans that differ by less count as equally fast
_ERROR_SLACK = 1.25  # factor for a plan made elsewhere, whose noise was measured on other data


def solve_step(
    variants: Variants,
    budget: int | Share,
    portfolio: Portfolio,
    progress: Progress | None = None,
    given_plan: Plan | None = None,
) -> PlannedStep:
    """Return the fastest plan among all variants of a step; the first variant wins a tie.

    budget: bytes, or a share of this step's peak with everything kept, a loss outside included. The bytes of that loss
        are left free where the step can be planned so.
    given_plan: a plan to use instead of solving. PlanError if it is for another step or peaks above the budget here.

    Raises InfeasibleBudget, PlanError.
    """
    first = variants.as_captured
    room = first.room_bytes
    budget_bytes = bytes_of(budget, everything_kept_bytes(first.problem, room))
    if given_plan is not None:
        fitting = (variant for variant in variants if difference_of(variant.problem, given_plan.problem) is None)
        variant = next(fitting, first)
        return variant.with_plan(_resimulated(given_plan, variant.problem, budget_bytes))
    started = perf_counter()
    solving_progress = (lambda share, text: progress(0.6 + 0.4 * share, text)) if progress else None
    limit_seconds = first.measured.options.time_limit
    planned = _fastest(variants, budget_bytes, portfolio, solving_progress, limit_seconds)
    if peak_with_room(planned.plan, room) > budget_bytes:
        left_seconds = max(limit_seconds - (perf_counter() - started), _LEAST_SECONDS)
        with suppress(InfeasibleBudget):
            with_room_left = _fastest(variants, budget_bytes, portfolio, solving_progress, left_seconds, room)
            # A bound that is proven without the room holds with it too.
            bound = planned.plan.lower_bound_seconds
            planned = replace(with_room_left, plan=replace(with_room_left.plan, lower_bound_seconds=bound))
    notes = (*planned.plan.notes, *note_of(planned.plan, room, budget_bytes))
    return replace(planned, plan=replace(planned.plan, notes=notes))


def _fastest(
    variants: Variants,
    budget_bytes: int,
    portfolio: Portfolio,
    progress: Progress | None,
    limit_seconds: float,
    room: int = 0,
) -> PlannedStep:
    """Return the fastest plan of all variants within a budget of which `room` bytes are left for a loss outside."""
    plans: list[PlannedStep] = []
    shortfalls: list[InfeasibleBudget] = []
    bounds: list[float | None] = []
    for variant, left_seconds in _timed(variants, limit_seconds):
        problem = with_room(variant.problem, room)
        try:
            plan = portfolio.solve(problem, budget_bytes, variant.measured.options.solver, progress, left_seconds)
        except InfeasibleBudget as shortfall:
            shortfalls.append(shortfall)
            bounds.append(lower_bound_seconds(problem, budget_bytes))  # others may find what none did here
            continue
        bounds.append(plan.lower_bound_seconds)
        plans.append(variant.with_plan(_without_room(plan, variant.problem)))
        if not plan.extra_seconds:
            break
    if not plans:
        raise min(shortfalls, key=lambda shortfall: shortfall.smallest_bytes)
    best = min(plans, key=lambda planned: _time_steps(planned.plan))
    known = [bound for bound in bounds if bound is not None]
    return replace(best, plan=replace(best.plan, lower_bound_seconds=min(known) if len(known) == len(bounds) else None))


def _without_room(plan: Plan, problem: Problem) -> Plan:
    """Return a plan simulated without the room for a loss outside.

    problem: the plan's problem without that room.
    """
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


def _timed(variants: Iterable[StepProblem], limit_seconds: float) -> Iterator[tuple[StepProblem, float]]:
    """Yield each variant with the seconds that the variants before it have left. Measuring a variant does not count."""
    for variant in variants:
        started = perf_counter()
        yield variant, limit_seconds
        limit_seconds = max(limit_seconds - (perf_counter() - started), _LEAST_SECONDS)


def _time_steps(plan: Plan) -> int:
    """Return a plan's seconds in thousandths of the step's time."""
    return round(plan.seconds / (_TIME_RESOLUTION * plan.baseline_seconds or 1.0))


def frontier_of(variants: Variants, count: int, portfolio: Portfolio, progress: Progress | None) -> list[Plan]:
    """Return at most `count` plans of the frontier of a step, over all its variants."""
    frontiers = [
        portfolio.frontier(variant.problem, count, progress, left_seconds)
        for variant, left_seconds in _timed(variants, variants.as_captured.measured.options.time_limit)
    ]
    if len(frontiers) == 1:
        return frontiers[0]
    frontier: list[Plan] = []
    best = inf, inf
    for plan in sorted(chain.from_iterable(frontiers), key=lambda plan: (plan.peak_bytes, plan.seconds)):
        quality = _time_steps(plan), plan.encoding_error  # equally fast ones have smaller errors in more bytes
        if quality < best:
            frontier.append(plan)
            best = quality
    return spread_out(frontier[::-1], count)


def spread_out(plans: Sequence[Plan], count: int) -> list[Plan]:
    """Return at most `count` plans of a frontier, spread evenly over their peaks, with the first and the last."""
    high, low = plans[0].peak_bytes, plans[-1].peak_bytes
    chosen: dict[int, Plan] = {}
    for step in range(count):
        budget_bytes = high - (high - low) * step // max(count - 1, 1)
        best = next(plan for plan in plans if plan.peak_bytes <= budget_bytes)
        chosen[best.peak_bytes] = best
    return list(chosen.values())


def bytes_of(budget: int | Share, whole_bytes: int) -> int:
    """Return a budget in bytes; a share refers to `whole_bytes`."""
    return int(budget.fraction * whole_bytes) if isinstance(budget, Share) else budget


def smallest_step(variants: Variants, portfolio: Portfolio, progress: Progress | None = None) -> PlannedStep:
    """Return the plan of the smallest peak among all variants of the step."""
    plans = [
        variant.with_plan(portfolio.frontier(variant.problem, 2, progress, left_seconds)[-1])
        for variant, left_seconds in _timed(variants, variants.as_captured.measured.options.time_limit)
    ]
    return min(plans, key=lambda planned: planned.plan.peak_bytes)


def _resimulated(given_plan: Plan, problem: Problem, budget_bytes: int) -> Plan:
    """Return a plan from elsewhere, simulated with the costs measured here."""
    difference = difference_of(problem, given_plan.problem)
    if difference is not None:
        raise PlanError(
            f"the plan was made for another step: {shortened(difference)}; pass the options and inputs that it was "
            "made with, or make a new one"
        )
    _check_quantization_error(given_plan, problem)
    allowed = replace(problem, error_budget=problem.error_budget * _ERROR_SLACK)
    try:
        plan = make_plan(
            allowed, given_plan.schedule, solver=given_plan.solver, budget_bytes=budget_bytes, notes=given_plan.notes
        )
    except ScheduleError as error:
        raise PlanError(f"the plan cannot be used here: {shortened(str(error))}; make a new one") from error
    if plan.peak_bytes > budget_bytes:
        raise PlanError(
            f"the plan peaks at {format_bytes(plan.peak_bytes)} here, above the budget of "
            f"{format_bytes(budget_bytes)}: "
            f"it was made for {format_bytes(given_plan.peak_bytes)}; raise the budget or make a new plan"
        )
    return plan


def _check_quantization_error(given_plan: Plan, problem: Problem) -> None:
    """Raise PlanError if the codes of a plan add more variance here than allowed."""
    added = problem.error_of(given_plan.encoded)
    if not added <= problem.error_budget * _ERROR_SLACK:
        amount = f"{added:.2g} of" if isfinite(added) else "an unknown share of"
        raise PlanError(
            f"the plan's codes add {amount} the gradient's own variance on these inputs, where error_budget="
            f"{problem.error_budget:g} and a quarter more are allowed; they were planned to add "
            f"{given_plan.encoding_error:.2g}: raise error_budget or make a new plan"
        )
