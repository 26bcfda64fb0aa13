"""lowtide's rows of the frontier: plans for budgets of its own and for every peer's peak, and the bound on all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lowtide
from lowtide.solvers.bound import lower_bound_seconds
from lowtide.solvers.plan import Plan

from benchmarks.frontier_row import LOWTIDE, Row, told_error
from benchmarks.frontier_step import Runner, Subject, runner_of

MIB = 2**20
_BOUND_POINTS = 48


@dataclass(frozen=True)
class Range:
    """Where lowtide's budgets lie, in bytes above the start of the step, and the plan that keeps everything."""

    plan: Plan
    smallest_bytes: int
    largest_bytes: int

    @property
    def resident_bytes(self) -> int:
        """What is there at the start: parameters, buffers, inputs and gradients that exist."""
        return self.plan.problem.resident_bytes

    def spread(self, count: int) -> list[int]:
        """Budgets from the largest to the smallest, evenly."""
        step = (self.largest_bytes - self.smallest_bytes) / max(count - 1, 1)
        return [self.largest_bytes - round(number * step) for number in range(count)]


def range_of(subject: Subject, costs: str) -> Range:
    """Plans with everything kept and finds the smallest budget that can be met."""
    subject.reset()
    options: dict[str, Any] = {"kwargs": subject.batch, "outputs": ["loss"], "costs": costs}
    plan = lowtide.plan(subject.twin(), "100%", **options)
    resident_bytes = plan.problem.resident_bytes
    try:
        lowtide.plan(subject.twin(), 1, **options)
        raise AssertionError("a budget of 1 byte was met")
    except lowtide.InfeasibleBudget as error:
        smallest_bytes = error.smallest_bytes
    return Range(plan, smallest_bytes - resident_bytes, plan.baseline_peak_bytes - resident_bytes)


def lowtide_rows(
    subject: Subject, costs: str, span: Range, budgets: dict[int, list[str]]
) -> Iterator[tuple[Row, Runner | None]]:
    """A row for each budget above the start, from the largest; a runner where its plan is new.

    budgets: bytes above the start, each with the names of the peers whose peak it is.
    """
    planned: list[tuple[Row, Any]] = []
    names = _names(budgets)
    for budget_bytes in sorted(budgets, reverse=True):
        row = Row(names[budget_bytes], LOWTIDE, budget_bytes, budgets[budget_bytes])
        runner = _planned(subject, costs, span, row)
        if runner is not None:
            schedule = runner.module.plan.schedule  # pyright: ignore[reportAttributeAccessIssue]
            same = next((other for other, known in planned if known == schedule), None)
            if same is not None:
                row.same_plan_as, runner = same.name, None
            else:
                planned.append((row, schedule))
        yield row, runner


def _names(budgets: Iterable[int]) -> dict[int, str]:
    """A name for each, with as many digits as tell it from the others."""
    names: dict[int, str] = {}
    for digits in range(7, 0, -1):
        told = {budget_bytes: f"{budget_bytes / MIB:.{digits}f}" for budget_bytes in budgets}
        times = Counter(told.values())
        names |= {b: f"{LOWTIDE} ≤ {text} MiB" for b, text in told.items() if times[text] == 1}
    return names


def _planned(subject: Subject, costs: str, span: Range, row: Row) -> Runner | None:
    """Rewrites for a row's budget and fills in what the plan says; None where it cannot be met."""
    budget_bytes = span.resident_bytes + (row.budget_bytes or 0)
    subject.reset()
    started = time.perf_counter()
    try:
        small: Any = lowtide.rewrite(subject.twin(), budget_bytes, kwargs=subject.batch, outputs=["loss"], costs=costs)
    except lowtide.InfeasibleBudget as error:
        row.failure = f"infeasible: the smallest is {(error.smallest_bytes - span.resident_bytes) / MIB:.2f} MiB"
        return None
    except Exception as error:  # told in the row, as a peer's
        row.failure = told_error(error)
        return None
    row.planning_seconds = time.perf_counter() - started
    _tell_plan(row, small.plan, span)
    return runner_of(row.name, LOWTIDE, small, subject.batch)


def _tell_plan(row: Row, plan: Plan, span: Range) -> None:
    row.predicted_peak_bytes = plan.peak_bytes - span.resident_bytes
    row.predicted_extra_share = plan.extra_share
    row.solve_seconds, row.solver = plan.solve_seconds, plan.solver
    if plan.lower_bound_seconds is not None:
        row.bound_share = plan.lower_bound_seconds / plan.baseline_seconds
    row.notes = list(plan.notes)


def copy_measurements(row: Row, rows: Sequence[Row]) -> None:
    """Fills in a row whose plan another one has."""
    same = next((other for other in rows if other.name == row.same_plan_as), None)
    if same is None:
        return
    for name in ("peak_bytes", "flops", "seconds", "gradient_error", "loss_equal", "buffers_equal", "failure"):
        setattr(row, name, getattr(same, name))


def bound_curve(span: Range) -> list[tuple[int, float]]:
    """(budget above the start, the share of extra time below which no schedule stays), from small to large."""
    problem, seconds = span.plan.problem, span.plan.baseline_seconds
    step = (span.largest_bytes - span.smallest_bytes) / (_BOUND_POINTS - 1)
    budgets = [span.smallest_bytes + round(number * step) for number in range(_BOUND_POINTS)]
    return [(b, lower_bound_seconds(problem, span.resident_bytes + b) / seconds if seconds else 0.0) for b in budgets]
