"""One row of the frontier: everything that is measured of one way to run the step."""

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
_OTHER_ORDER = 1e-3  # as far as gradients may be from eager's by adding up in another order


@dataclass
class Row:
    """A line of the table; what is None does not apply or could not be measured, `failure` says why.

    Peaks and budgets are bytes above the start of the step. extra_*share: beyond eager, as a share of eager's.
    predicted_extra_share, bound_share: extra time in the unit of the costs planned with, as a share of the step with
    everything kept; no schedule within the budget takes less than the bound. same_plan_as: the row whose plan, and so
    measurements, these are. seconds: of each round.
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
        """Whether the gradients are others than eager's, not just rounded otherwise."""
        return self.gradient_error is not None and self.gradient_error > _OTHER_ORDER

    @property
    def gap_share(self) -> float | None:
        """How far the plan may be from the best there is, as a share of the step with everything kept."""
        if self.predicted_extra_share is None or self.bound_share is None:
            return None
        return self.predicted_extra_share - self.bound_share


def measure(subject: Subject, runner: Runner, reference: Result, row: Row) -> None:
    """Fills in peak, operations and bits; a step that fails is told in the row."""
    try:
        result = result_of(subject, runner)
        row.gradient_error = gradient_error(reference, result)
        row.loss_equal = torch.equal(reference.loss, result.loss)
        row.buffers_equal = buffers_equal(reference, result)
        row.peak_bytes = peak_bytes(subject, runner)
        subject.reset()
        row.flops = count_flops(runner.step)
    except Exception as error:  # a peer that torch cannot run is a finding, not the end
        row.failure = error_text(error)


def compare_flops(row: Row, eager: Row) -> None:
    """Fills in the operations beyond eager's."""
    if row.flops:
        row.extra_flops_share = row.total_flops / eager.total_flops - 1
        row.extra_matmul_share = matmul_flops(row.flops) / matmul_flops(eager.flops) - 1


def compare_seconds(row: Row, eager: Row) -> None:
    """Fills in the time relative to eager's in the same round."""
    if row.seconds:
        row.time_ratio, row.time_ratio_quartiles = paired(row, eager)


def paired(one: Row, other: Row) -> tuple[float, tuple[float, float]]:
    """Median and quartiles over rounds of one's seconds divided by the other's."""
    ratios = [a / b for a, b in zip(one.seconds, other.seconds, strict=True)]
    if len(ratios) < 2:
        return ratios[0], (ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return median, (low, high)


def error_text(error: BaseException) -> str:
    """The kind of an error and its first line."""
    lines: list[Any] = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def tell(text: str) -> None:
    """Says on stderr what is being done: over what was said before on a terminal, else on a line of its own."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:110]}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


def attempt(make: Callable[[], Runner], name: str, kind: str) -> tuple[Row, Runner | None]:
    """A runner with its row, or a row that says why there is none."""
    try:
        runner = make()
    except Exception as error:  # as above
        return Row(name, kind, failure=error_text(error)), None
    return Row(runner.name, runner.kind, notes=runner.notes), runner
