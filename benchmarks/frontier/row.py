"""One row of the frontier: everything that is measured about one method to run the step."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.frontier.flops import count_flops, matmul_flops
from benchmarks.frontier.step import Result, Runner, Subject, buffers_equal, gradient_error, peak_bytes, result_of

LOWTIDE = "lowtide"
_OTHER_ORDER = 1e-3  # how far summing in another order may move gradients from eager's


@dataclass
class Row:
    """A line of the table; None means that a field does not apply or could not be measured.

    Peaks and budgets are bytes above the start of the step.

    budget_of: the names of the peers whose peak the budget is.
    extra_flops_share, extra_matmul_share: beyond eager, as a share of eager's.
    predicted_extra_share: extra time in the unit of the costs planned with, as a share of the step with all kept.
    bound_share: in the same unit; no schedule within the budget takes less.
    seconds: one number per round.
    same_plan_as: the row that has the same plan, and so the same measurements.
    failure: why the row could not be measured.
    """

    name: str
    kind: str
    budget_bytes: int | None = None
    budget_of: list[str] = field(default_factory=list)
    peak_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    flops: dict[str, int] = field(default_factory=dict)
    extra_flops_share: float | None = None
    extra_matmul_share: float | None = None
    predicted_extra_share: float | None = None
    bound_share: float | None = None
    seconds: list[float] = field(default_factory=list)
    time_ratio: float | None = None
    time_ratio_quartiles: tuple[float, float] | None = None
    gradient_error: float | None = None
    loss_equal: bool | None = None
    buffers_equal: bool | None = None
    planning_seconds: float | None = None
    solve_seconds: float | None = None
    solver: str | None = None
    same_plan_as: str | None = None
    notes: list[str] = field(default_factory=list)
    failure: str | None = None

    @property
    def total_flops(self) -> int:
        """Operations of the step."""
        return sum(self.flops.values())

    @property
    def is_wrong(self) -> bool:
        """Return whether the gradients differ from eager's by more than rounding."""
        return self.gradient_error is not None and self.gradient_error > _OTHER_ORDER

    @property
    def gap_share(self) -> float | None:
        """The largest possible distance to the optimum, as a share of the step with everything kept."""
        if self.predicted_extra_share is None or self.bound_share is None:
            return None
        return self.predicted_extra_share - self.bound_share


def measure(subject: Subject, runner: Runner, reference: Result, row: Row) -> None:
    """Fill in peak, operations and bits; where the step fails, fill in `failure`."""
    try:
        result = result_of(subject, runner)
        row.gradient_error = gradient_error(reference, result)
        row.loss_equal = torch.equal(reference.loss, result.loss)
        row.buffers_equal = buffers_equal(reference, result)
        row.peak_bytes = peak_bytes(subject, runner)
        subject.reset()
        row.flops = count_flops(runner.step)
    except Exception as error:  # a peer that torch cannot run is a result, not the end
        row.failure = error_text(error)


def compare_flops(row: Row, eager: Row) -> None:
    """Fill in the operations beyond eager's."""
    if row.flops:
        row.extra_flops_share = row.total_flops / eager.total_flops - 1
        row.extra_matmul_share = matmul_flops(row.flops) / matmul_flops(eager.flops) - 1


def compare_seconds(row: Row, eager: Row) -> None:
    """Fill in the time relative to eager's in the same round."""
    if row.seconds:
        row.time_ratio, row.time_ratio_quartiles = paired(row, eager)


def paired(row: Row, reference: Row) -> tuple[float, tuple[float, float]]:
    """Return median and quartiles over rounds of one row's seconds divided by the reference's."""
    ratios = [a / b for a, b in zip(row.seconds, reference.seconds, strict=True)]
    if len(ratios) < 2:
        return ratios[0], (ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return median, (low, high)


def error_text(error: BaseException) -> str:
    """Return the kind of an error and its first line."""
    lines: list[Any] = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def show_progress(text: str) -> None:
    """Print progress on stderr: in place of the previous text on a terminal, otherwise on its own line."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:110]}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def attempt(make: Callable[[], Runner], name: str, kind: str) -> tuple[Row, Runner | None]:
    """Return a runner with its row, or a row that says why there is none."""
    try:
        runner = make()
    except Exception as error:  # as above
        return Row(name, kind, failure=error_text(error)), None
    return Row(runner.name, runner.kind, notes=runner.notes), runner
