"""Holds the outcome of verification, predicted against measured, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ...solvers.problem.plain_text import printable
from ...solvers.problem.plan import Plan
from ..plan.plan_file import summary_of
from ..text.byte_sizes import format_bytes
from .codec_audit import Audit
from .comparison import Difference
from .noise_check import MeasuredNoise
from .tolerances import GRADIENT, Deviation


@dataclass(frozen=True)
class Report:
    """The outcome of `verify`.

    name: the class of the module.
    plan: the plan of the rewritten module.
    steps: the number of steps compared.
    compared: the number of tensors compared after each step.
    differences: the results that differ between eager and the rewritten module.
    unstable: the results that differ between two runs of eager, which no rewriting can equal.
    eager_peak_bytes: the measured peak of eager, everything counted.
    measured_peak_bytes: the measured peak of the rewritten module.
    dropped_peak_bytes: the same if the caller drops the outputs of forward, except for the loss, before backward.
    time_ratio: the median over pairs of rewritten / eager; None if nothing was timed.
    timed_pairs: the number of timed pairs.
    device_type: the type of the device.
    notes: the notes of the plan.
    errors: the largest relative error of each kind of result, with its limit; empty where bits are compared.
    predicted_error: the relative error of all gradients together that approximate codes are predicted to cause.
    audit: the errors that single codes cause in their values and in the gradient, predicted and measured.
    noise: the noise that all codes cause in each gradient, over a few draws; None if nothing is approximate.
    """

    name: str
    plan: Plan
    steps: int
    compared: int
    differences: tuple[Difference, ...]
    unstable: tuple[str, ...]
    eager_peak_bytes: int
    measured_peak_bytes: int
    dropped_peak_bytes: int
    time_ratio: float | None
    timed_pairs: int
    device_type: str
    notes: tuple[str, ...] = ()
    errors: tuple[Deviation, ...] = ()
    predicted_error: float = 0.0
    audit: Audit = field(default_factory=Audit)
    noise: MeasuredNoise | None = None

    @property
    def same_results(self) -> bool:
        """Return whether all results that eager itself repeats were the same, to the bit or within limits."""
        return not self.differences

    @property
    def same_bits(self) -> bool:
        """Return whether all those results were the same to the bit."""
        return not self.differences and not any(deviation.relative for deviation in self.errors)

    @property
    def within_budget(self) -> bool:
        """Return whether both measured peaks are at most the budget."""
        budget_bytes = self.plan.budget_bytes
        return budget_bytes is None or max(self.measured_peak_bytes, self.dropped_peak_bytes) <= budget_bytes

    @property
    def predicted(self) -> bool:
        """Return whether the peak was predicted: on CPU to the byte, on CUDA within 1 %."""
        off = abs(self.measured_peak_bytes - self.plan.peak_bytes)
        return off == 0 if self.device_type == "cpu" else off <= 0.01 * self.plan.peak_bytes

    @property
    def ok(self) -> bool:
        """Return whether results are the same, peaks are predicted and within the budget, and no code has a fault."""
        return self.same_results and self.within_budget and self.predicted and not self.faults

    @property
    def faults(self) -> tuple[str, ...]:
        """Return a sentence about each fault of approximate codes."""
        return (*self.audit.faults, *(self.noise.faults if self.noise is not None else ()))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts, for JSON."""
        return {
            "model": self.name,
            "ok": self.ok,
            "same_results": self.same_results,
            "same_bits": self.same_bits,
            "within_budget": self.within_budget,
            "predicted": self.predicted,
            "steps": self.steps,
            "compared": self.compared,
            "differences": [asdict(difference) for difference in self.differences],
            "unstable": list(self.unstable),
            "errors": [asdict(deviation) for deviation in self.errors],
            "predicted_error": self.predicted_error,
            "audit": self.audit.to_dict(),
            "noise": self.noise.to_dict() if self.noise is not None else None,
            "faults": list(self.faults),
            "eager_peak_bytes": self.eager_peak_bytes,
            "measured_peak_bytes": self.measured_peak_bytes,
            "dropped_peak_bytes": self.dropped_peak_bytes,
            "time_ratio": self.time_ratio,
            "timed_pairs": self.timed_pairs,
            "device": self.device_type,
            "plan": summary_of(self.plan),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        plan = self.plan
        rows = [
            ("eager peak, measured", format_bytes(self.eager_peak_bytes)),
            ("everything kept, predicted", format_bytes(plan.baseline_peak_bytes)),
            ("budget", format_bytes(plan.budget_bytes) if plan.budget_bytes is not None else "none"),
            ("peak, predicted", f"{format_bytes(plan.peak_bytes)} ({plan.peak_bytes:,} bytes)"),
            ("peak, measured", f"{format_bytes(self.measured_peak_bytes)} ({self.measured_peak_bytes:,} bytes)"),
            ("peak, outputs dropped early", format_bytes(self.dropped_peak_bytes)),
            ("extra time, predicted", f"{plan.extra_share:.1%} ({plan.solver}, {plan.costs})"),
        ]
        if plan.lower_bound_seconds is not None and plan.baseline_seconds:
            rows.append(("extra time, proven at least", f"{plan.lower_bound_seconds / plan.baseline_seconds:.1%}"))
        if self.time_ratio is not None:
            rows.append(("step time / eager's", f"{self.time_ratio:.3f} (median of {self.timed_pairs} pairs)"))
        if self.predicted_error:
            added, limit = _share(plan.encoding_error), f"{plan.problem.error_budget:.2%}"
            rows.append(("variance added, predicted", f"at most {added} of the gradient's own, limit {limit}"))
            rows += self._noise()
            rows.append(("relative error, predicted", f"{self.predicted_error:.1e}: all gradients together"))
        rows += [
            ("relative error", f"{deviation.relative:.1e}, limit {deviation.limit:.0e}: {deviation.what}")
            for deviation in self.errors
        ]
        rows.append(("results" if self.errors else "bits", self._compared()))
        width = max(len(name) for name, _ in rows)
        lines = [f"{self.name}: {'verified' if self.ok else 'NOT VERIFIED'}"]
        lines += [f"  {name:<{width}}  {value}" for name, value in rows]
        lines += [f"  WRONG: {fault}" for fault in self.faults]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(map(printable, lines))

    def _noise(self) -> Iterator[tuple[str, str]]:
        """Yield the rows about the noise of codes over draws."""
        if self.noise is None:
            return
        draws, together = self.noise.draws, self.noise.together
        yield "  measured over draws", f"{_share(together.measured)}, limit {_share(together.limit)}, {draws} draws"
        yield "  the same in all draws", f"{_share(max(self.noise.bias, 0.0))}, limit {_share(self.noise.bias_limit)}"
        furthest = max(self.noise.alone, key=lambda gradient: gradient.share_of_limit)
        measured = f"{_share(furthest.measured)}, limit {_share(furthest.limit)}"
        yield "  of that nearest its limit", f"{measured}: {furthest.what.removeprefix(GRADIENT)}"

    def _compared(self) -> str:
        if self.differences:
            worst = self.differences[0]
            summary = (
                f"{len(self.differences)} DIFFER, first {worst.what} after step {worst.step} by {worst.largest:.2e}"
            )
        else:
            agreement = "within the limits" if self.errors else "equal"
            summary = f"{agreement}: {self.compared} tensors after each of {self.steps} steps"
        return summary + (f"; {len(self.unstable)} differ between two runs of eager" if self.unstable else "")


def _share(part: float) -> str:
    """Format a share of the gradient's own variance: in per cent, unless it is nearly nothing."""
    return f"{part:.2%}" if part >= 1e-3 else f"{part:.1e}"
