"""lowtide's rows of the frontier: plans for budgets of its own and for every peer's peak, and the bound on all."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lowtide
from lowtide.rewriter.run.module import prepare
from lowtide.solvers.bound import lower_bound_seconds
from lowtide.solvers.problem.plan import Plan

from benchmarks.frontier.row import LOWTIDE, Row, error_text
from benchmarks.frontier.step import Runner, Subject, runner_of

MIB = 2**20
_BOUND_POINTS = 48


class Planner:
    """Rewrites one subject for many budgets; candidates that hold for all budgets are made once."""

    def __init__(self, subject: Subject, costs: str) -> None:
        self.subject, self.costs = subject, costs
        self._portfolio: Any = None

    def rewritten(self, budget: int | str) -> Any:
        """A rewritten module, planned for the subject's batch. Raises what `lowtide.rewrite` raises."""
        self.subject.reset()
        small: Any = lowtide.rewrite(self.subject.twin(), budget, outputs=["loss"], costs=self.costs)
        self._portfolio = small.lowtide.portfolio = self._portfolio or small.lowtide.portfolio
        prepare(small, (), self.subject.batch)
        return small


@dataclass(frozen=True)
class Range:
    """Where lowtide's budgets lie, in bytes above the start of the step.

    plan: the one that keeps everything, the first that was made; planning_seconds: what it took, with capturing.
    """

    plan: Plan
    planning_seconds: float
    smallest_bytes: int
    largest_bytes: int

    @property
    def resident_bytes(self) -> int:
        """What is there at the start: parameters, buffers, inputs and gradients that exist."""
        return self.plan.problem.resident_bytes

    def spread(self, count: int) -> list[int]:
        """Budgets from the largest to the smallest, each the same share of the one before."""
        share = (self.smallest_bytes / self.largest_bytes) ** (1 / max(count - 1, 1))
        budgets = [round(self.largest_bytes * share**number) for number in range(count)]
        return [max(budget_bytes, self.smallest_bytes) for budget_bytes in budgets]


def range_of(planner: Planner) -> Range:
    """Plans with everything kept and finds the smallest budget that can be met."""
    started = time.perf_counter()
    plan: Plan = planner.rewritten("100%").plan
    planning_seconds = time.perf_counter() - started
    resident_bytes = plan.problem.resident_bytes
    try:
        planner.rewritten(1)
        raise AssertionError("a budget of 1 byte was met")
    except lowtide.InfeasibleBudget as error:
        smallest_bytes = error.smallest_bytes
    return Range(plan, planning_seconds, smallest_bytes - resident_bytes, plan.baseline_peak_bytes - resident_bytes)


def lowtide_rows(planner: Planner, span: Range, budgets: dict[int, list[str]]) -> Iterator[tuple[Row, Runner | None]]:
    """A row for each budget above the start, from the largest; a runner where its plan is new.

    budgets: bytes above the start, each with the names of the peers whose peak it is.
    """
    planned: list[tuple[Row, Any]] = []
    names = _names(budgets)
    for budget_bytes in sorted(budgets, reverse=True):
        row = Row(names[budget_bytes], LOWTIDE, budget_bytes, budgets[budget_bytes])
        small = _planned(planner, span, row)
        same = next((other for other, known in planned if small is not None and known == small.plan.schedule), None)
        if small is None:
            yield row, None
        elif same is not None:
            row.same_plan_as = same.name
            yield row, None
        else:
            planned.append((row, small.plan.schedule))
            yield row, runner_of(row.name, LOWTIDE, small, planner.subject.batch)


def _names(budgets: Iterable[int]) -> dict[int, str]:
    """A name for each, with as many digits as tell it from the others."""
    names: dict[int, str] = {}
    for digits in range(7, 0, -1):
        told = {budget_bytes: f"{budget_bytes / MIB:.{digits}f}" for budget_bytes in budgets}
        times = Counter(told.values())
        names |= {b: f"{LOWTIDE} ≤ {text} MiB" for b, text in told.items() if times[text] == 1}
    return names


def _planned(planner: Planner, span: Range, row: Row) -> Any:
    """Rewrites for a row's budget and fills in what the plan says; None where that fails, which the row tells."""
    started = time.perf_counter()
    try:
        small = planner.rewritten(span.resident_bytes + (row.budget_bytes or 0))
    except lowtide.InfeasibleBudget as error:
        row.failure = f"infeasible: the smallest is {(error.smallest_bytes - span.resident_bytes) / MIB:.2f} MiB"
        return None
    except Exception as error:  # a finding, as with a peer
        row.failure = error_text(error)
        return None
    row.planning_seconds = time.perf_counter() - started
    _tell_plan(row, small.plan, span)
    return small


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
