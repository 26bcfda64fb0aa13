"""lowtide's rows of the frontier: plans for budgets of its own and for every peer's peak, and the lower bound."""

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
    """Rewrites one subject for many budgets; candidates, which hold for all budgets, are made once."""

    def __init__(self, subject: Subject, costs: str) -> None:
        self.subject, self.costs = subject, costs
        self._portfolio: Any = None

    def rewritten(self, budget: int | str) -> Any:
        """Return a rewritten module, planned for the subject's batch. Raises what `lowtide.rewrite` raises."""
        self.subject.reset()
        small: Any = lowtide.rewrite(self.subject.shadow_copy(), budget, outputs=["loss"], costs=self.costs)
        self._portfolio = small.lowtide.portfolio = self._portfolio or small.lowtide.portfolio
        prepare(small, (), self.subject.batch)
        return small


@dataclass(frozen=True)
class Range:
    """The range of lowtide's budgets, in bytes above the start of the step.

    plan: the first plan, which keeps everything.
    planning_seconds: the time of that plan, with capturing.
    """

    plan: Plan
    planning_seconds: float
    smallest_bytes: int
    largest_bytes: int

    @property
    def resident_bytes(self) -> int:
        """The bytes at the start: parameters, buffers, inputs and gradients that exist."""
        return self.plan.problem.resident_bytes

    def spread(self, count: int) -> list[int]:
        """Return budgets from the largest to the smallest, each the same share of the one before."""
        share = (self.smallest_bytes / self.largest_bytes) ** (1 / max(count - 1, 1))
        budgets = [round(self.largest_bytes * share**number) for number in range(count)]
        return [max(budget_bytes, self.smallest_bytes) for budget_bytes in budgets]


def range_of(planner: Planner) -> Range:
    """Plan with everything kept and find the smallest budget that can be met."""
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
    """Yield a row for each budget, from the largest, with a runner where its plan is new.

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
    """Return a name for each budget, with enough digits to distinguish it from the others."""
    names: dict[int, str] = {}
    for digits in range(7, 0, -1):
        texts = {budget_bytes: f"{budget_bytes / MIB:.{digits}f}" for budget_bytes in budgets}
        counts = Counter(texts.values())
        names |= {b: f"{LOWTIDE} ≤ {text} MiB" for b, text in texts.items() if counts[text] == 1}
    return names


def _planned(planner: Planner, span: Range, row: Row) -> Any:
    """Rewrite for a row's budget and fill in the plan's figures; return None and fill in `failure` if that fails."""
    started = time.perf_counter()
    try:
        small = planner.rewritten(span.resident_bytes + (row.budget_bytes or 0))
    except lowtide.InfeasibleBudget as error:
        row.failure = f"infeasible: the smallest is {(error.smallest_bytes - span.resident_bytes) / MIB:.2f} MiB"
        return None
    except Exception as error:  # a result, as with a peer
        row.failure = error_text(error)
        return None
    row.planning_seconds = time.perf_counter() - started
    _record_plan(row, small.plan, span)
    return small


def _record_plan(row: Row, plan: Plan, span: Range) -> None:
    row.predicted_peak_bytes = plan.peak_bytes - span.resident_bytes
    row.predicted_extra_share = plan.extra_share
    row.solve_seconds, row.solver = plan.solve_seconds, plan.solver
    if plan.lower_bound_seconds is not None:
        row.bound_share = plan.lower_bound_seconds / plan.baseline_seconds
    row.notes = list(plan.notes)


def copy_measurements(row: Row, rows: Sequence[Row]) -> None:
    """Fill in a row that has the same plan as another one."""
    same = next((other for other in rows if other.name == row.same_plan_as), None)
    if same is None:
        return
    for name in ("peak_bytes", "flops", "seconds", "gradient_error", "loss_equal", "buffers_equal", "failure"):
        setattr(row, name, getattr(same, name))


def bound_curve(span: Range) -> list[tuple[int, float]]:
    """Return pairs of budget above the start and lower bound on the share of extra time, from small to large."""
    problem, seconds = span.plan.problem, span.plan.baseline_seconds
    step = (span.largest_bytes - span.smallest_bytes) / (_BOUND_POINTS - 1)
    budgets = [span.smallest_bytes + round(number * step) for number in range(_BOUND_POINTS)]
    return [(b, lower_bound_seconds(problem, span.resident_bytes + b) / seconds if seconds else 0.0) for b in budgets]
