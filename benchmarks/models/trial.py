"""Tries one model: trains it in eager twice and rewritten once, compares all of it, and measures the peak."""

from __future__ import annotations

import copy
import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lowtide
import torch
from torch import nn

from .case import Case, NotBuilt, Subject
from .record import (
    CRASHED,
    DIFFERENT,
    EAGER_VARIES,
    EXACT,
    NOT_BUILT,
    NOT_PLANNED,
    OVER_BUDGET,
    OVER_PREDICTION,
    REFUSED,
    Record,
    kind_of,
)
from .steps import (
    Difference,
    Seen,
    differences,
    gradient_counts,
    peak_above_start,
    resident_bytes,
    seed_all,
    trained,
)

_SHOWN = 8  # differences, varying tensors and warnings in a record
_TEXT = 400


@dataclass(frozen=True)
class Limits:
    """The limits under which models are tried.

    budget: a share of the peak with everything kept.
    time_limit: seconds of solving.
    is_eager_only: whether to train in eager alone.
    """

    budget: str = "60%"
    time_limit: float = 2.0
    is_eager_only: bool = False


@dataclass
class Trial:
    """A trial in progress: fills `record`, and reports each stage's name when it begins."""

    case: Case
    limits: Limits
    report_stage: Callable[[str], object]
    record: Record = field(init=False)

    def __post_init__(self) -> None:
        self.record = Record(self.case.name, self.case.task, torch=torch.__version__)
        self.record.package = _package(self.case.family)

    def run(self) -> Record:
        """Return the filled record; no exception of the model or of lowtide passes through."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                subject, eager, unstable = self._eager()
                if self.record.verdict != NOT_BUILT:
                    self._rewritten(subject, eager, unstable)
            except Exception as error:
                self._failed(error)
        messages = [str(w.message) for w in caught if issubclass(w.category, lowtide.LowtideWarning)]
        self.record.warnings = [text[:_TEXT] for text in dict.fromkeys(messages)][:_SHOWN]
        if self.record.text and not self.record.kind:
            self.record.kind = kind_of(self.record.text)
        return self.record

    def _eager(self) -> tuple[Subject, list[Seen], set[str]]:
        """Build and train in eager, twice; return the first results, and the names of those that vary."""
        with self._stage("building"):
            seed_all(0)
            subject = self.case.build()
            model = subject.model.train()
            self.record.class_name = type(model).__name__
            self.record.parameters = sum(parameter.numel() for parameter in model.parameters())
        with self._stage("eager"):
            eager, again = (trained(self._copy(model), subject) for _ in range(2))
            unstable = {difference.what for difference in differences(eager, again)}
            self._check_worth(eager)
            self.record.varying = sorted(unstable)[:_SHOWN]
            copied = self._copy(model)
            start_bytes = resident_bytes(copied, subject.batch(0))
            self.record.eager_peak_bytes = start_bytes + peak_above_start(copied, subject)
        self.record.verdict = EXACT
        return subject, eager, unstable

    def _copy(self, model: nn.Module) -> nn.Module:
        """Return another module with equal parameters; build it again if its tensors cannot be copied."""
        try:
            return copy.deepcopy(model)
        except RuntimeError:
            seed_all(0)
            return self.case.build().model.train()

    def _check_worth(self, eager: list[Seen]) -> None:
        """Raise NotBuilt for a model without gradients or with infinite ones, which would show nothing."""
        self.record.tensors, self.record.tensors_with_gradient, is_finite = gradient_counts(eager)
        if not self.record.tensors_with_gradient and self.record.tensors:
            raise NotBuilt("no parameter gets a gradient")
        if not is_finite:
            raise NotBuilt("gradients in eager are not finite")

    def _rewritten(self, subject: Subject, eager: list[Seen], unstable: set[str]) -> None:
        if self.limits.is_eager_only:
            return
        with self._stage("planning"):
            small = self._planned(subject)
        with self._stage("running"):
            seen = trained(small, subject)
        differing = [difference for difference in differences(eager, seen) if difference.what not in unstable]
        self.record.different_count = len(differing)
        self.record.differences = [
            (difference.step, difference.what, difference.error) for difference in differing[:_SHOWN]
        ]
        with self._stage("measuring"):
            self._measure(small, subject)
        if differing:
            worst = max(differing, key=lambda difference: difference.error)
            self._judge(DIFFERENT, f"{worst.what} in step {worst.step}, relative error {worst.error:.2g}")
            self.record.kind = _kind_of_difference(differing, eager)
        elif self.record.verdict == EXACT and unstable:
            self._judge(EAGER_VARIES, ", ".join(self.record.varying))

    def _planned(self, subject: Subject) -> Any:
        """Return the rewritten model, for the requested share or else the smallest feasible budget."""
        options: dict[str, Any] = {"costs": "flops", "time_limit": self.limits.time_limit}
        budget: int | str = self.limits.budget
        self.record.budget = self.limits.budget
        while True:
            args, kwargs = subject.batch(0)
            try:
                return lowtide.rewrite(self._copy(subject.model), budget, args, kwargs, **options)
            except lowtide.InfeasibleBudget as error:
                if budget == "100%":
                    raise
                # A search under a time limit may not reach the same peak twice.
                is_first = budget == self.limits.budget
                budget = error.smallest_bytes if is_first else "100%"
                self.record.budget = "smallest" if is_first else "100%"

    def _measure(self, small: Any, subject: Subject) -> None:
        above_bytes = peak_above_start(small, subject)
        plan = small.plan
        if plan is None:
            self._judge(NOT_PLANNED, "the original's forward ran")
            return
        # Only the plan knows tensors that a module holds without registering them.
        start_bytes = max(resident_bytes(small, subject.batch(0)), plan.problem.resident_bytes)
        record = self.record
        record.measured_peak_bytes = start_bytes + above_bytes
        record.predicted_peak_bytes = plan.peak_bytes
        record.budget_bytes = plan.budget_bytes
        record.kept_peak_bytes = plan.baseline_peak_bytes
        record.extra_share = plan.extra_share
        record.operations = len(plan.problem.ops)
        record.notes = [*plan.notes]
        off_bytes = record.measured_peak_bytes - plan.peak_bytes
        if plan.budget_bytes is not None and record.measured_peak_bytes > plan.budget_bytes:
            self._judge(
                OVER_BUDGET,
                f"{record.measured_peak_bytes - plan.budget_bytes} bytes over, {off_bytes} more than predicted",
            )
        elif off_bytes > 0:
            self._judge(OVER_PREDICTION, f"{off_bytes} bytes more than predicted, within the budget")

    def _judge(self, verdict: str, text: str) -> None:
        self.record.verdict, self.record.text = verdict, text

    def _failed(self, error: Exception) -> None:
        """Record an exception by who raised it and in which stage."""
        message = f"{type(error).__name__}: {error}"
        if self.record.verdict == NOT_BUILT:
            verdict = NOT_BUILT
        else:
            verdict = REFUSED if isinstance(error, lowtide.LowtideError) else CRASHED
        self._judge(verdict, message[:_TEXT])
        frames = traceback.extract_tb(error.__traceback__)[-6:][::-1]
        places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        self.record.where = " < ".join(places)
        if verdict == CRASHED:
            self.record.kind = f"{kind_of(message)} in {Path(frames[0].filename).name} {frames[0].name}"

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.record.stage = name
        self.report_stage(name)
        started = time.process_time()
        try:
            yield
        finally:
            self.record.seconds[name] = round(time.process_time() - started, 3)


def _kind_of_difference(differing: list[Difference], eager: list[Seen]) -> str:
    """Return which sorts of tensors differ, and whether by more than rounding, relative to all of their sort together.

    A single tensor may be nothing but rounding, for example the gradient of the bias of keys.
    """
    sorts = sorted({difference.what.split()[0] for difference in differing})
    if any(math.isinf(difference.distance) for difference in differing):
        return f"{', '.join(sorts)}: lacking, or of another shape"
    squared_distance = sum(difference.distance**2 for difference in differing if difference.step == differing[0].step)
    alike = (t for what, t in eager[differing[0].step].items() if what.split()[0] in sorts and t is not None)
    whole = sum(float(torch.linalg.vector_norm(t.detach().abs().double())) ** 2 for t in alike)
    return f"{', '.join(sorts)}: {'as by rounding' if squared_distance < 1e-8 * whole else 'wrong'}"


def _package(family: str) -> str:
    try:
        return f"{family} {version(family)}"
    except PackageNotFoundError:
        return family
