"""A schedule with what is known about it: its simulated timeline, peak, time and proof."""

from __future__ import annotations

from dataclasses import dataclass, field

from .problem import Problem
from .schedule import Schedule


@dataclass(frozen=True)
class Plan:
    """A schedule, simulated. Made by `simulate.make_plan` only, so that no solver reports its own peak.

    problem: the step it is for. live_bytes[i] is what is alive after instruction i, everything counted (resident
    bytes too); peak_bytes is the highest moment, inside an instruction; `baseline_*` is the step with everything
    kept, in trace order, or `Problem.reference`.
    lower_bound_seconds: no schedule under budget_bytes takes less extra time (None if not computed).
    """

    problem: Problem = field(repr=False)
    schedule: Schedule = field(repr=False)
    live_bytes: tuple[int, ...] = field(repr=False)
    peak_bytes: int
    peak_instruction: int
    forward_seconds: float
    seconds: float
    baseline_seconds: float
    baseline_peak_bytes: int
    budget_bytes: int | None = None
    lower_bound_seconds: float | None = None
    solver: str = ""
    solve_seconds: float = 0.0
    costs: str = "measured"
    notes: tuple[str, ...] = field(default=())

    @property
    def fingerprint(self) -> str:
        """Identifies the step that the plan is valid for, up to what its operations cost."""
        return self.problem.fingerprint

    @property
    def extra_seconds(self) -> float:
        """Predicted time beyond the step with everything kept."""
        return max(0.0, self.seconds - self.baseline_seconds)

    @property
    def extra_share(self) -> float:
        """`extra_seconds` as a share of the step with everything kept."""
        return self.extra_seconds / self.baseline_seconds if self.baseline_seconds else 0.0

    @property
    def encoded(self) -> tuple[tuple[int, int], ...]:
        """(value, number of its encoding) of all that is encoded, each once, in the order of the schedule."""
        return self.schedule.encoded

    @property
    def encoded_bytes(self) -> int:
        """What the values that are encoded take as they are."""
        return sum(self.problem.values[value].size_bytes for value, _ in self.encoded)

    @property
    def code_bytes(self) -> int:
        """What their codes take."""
        return sum(self.problem.values[value].encodings[number].size_bytes for value, number in self.encoded)

    @property
    def encoding_error(self) -> float:
        """What all that is encoded adds to the gradient's variance, as a share of the variance that it has anyway."""
        return self.problem.error_of(self.encoded)
