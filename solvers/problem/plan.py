"""A schedule with its simulated timeline, peak, time and proven bound."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .plan_text import plan_text, program_text
from .problem import Problem
from .schedule import Decode, Encode, Free, FreeCode, Run, Schedule


@dataclass(frozen=True)
class Plan:
    """A simulated schedule. Only `simulate.make_plan` makes plans, so that no solver reports its own peak.

    problem: the step that the schedule is for.
    schedule: the instructions.
    live_bytes: the bytes alive after each instruction, everything counted, resident bytes too.
    peak_bytes: the highest moment, inside an instruction.
    peak_instruction: the number of that instruction, -1 if nothing rises above the resident bytes.
    forward_seconds: the part of `seconds` before backward begins.
    seconds: the predicted time of the step.
    baseline_seconds: the time of the step with everything kept, in trace order, or of `Problem.reference`.
    baseline_peak_bytes: the peak of the same.
    budget_bytes: the requested budget.
    lower_bound_seconds: no schedule under `budget_bytes` takes less extra time; None if not computed.
    solver: the name of the solver.
    solve_seconds: the time that solving took.
    costs: the kind of cost table, as in `Problem`.
    notes: the candidate's description, then remarks on other solvers.
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
        """Identify the step that the plan is valid for, except for the costs of its operations."""
        return self.problem.fingerprint

    @property
    def extra_seconds(self) -> float:
        """The predicted seconds beyond the step with everything kept."""
        return max(0.0, self.seconds - self.baseline_seconds)

    @property
    def extra_share(self) -> float:
        """`extra_seconds` as a share of the step with everything kept."""
        return self.extra_seconds / self.baseline_seconds if self.baseline_seconds else 0.0

    @property
    def kept(self) -> tuple[int, ...]:
        """The values that the step made and that are alive between forward and backward, in trace order."""
        alive: set[int] = set()
        for instruction in self.schedule.instructions[: self.schedule.forward_length]:
            match instruction:
                case Run(op):
                    alive.update(self.problem.ops[op].makes)
                case Decode(value, _):
                    alive.add(value)
                case Free(value):
                    alive.discard(value)
        return tuple(sorted(alive, key=lambda value: (self.problem.maker[value], value)))

    @property
    def kept_codes(self) -> tuple[tuple[int, int], ...]:
        """The codes that are alive between forward and backward, each as a value with the number of its encoding."""
        alive: dict[tuple[int, int], None] = {}
        for instruction in self.schedule.instructions[: self.schedule.forward_length]:
            match instruction:
                case Encode(value, encoding):
                    alive[value, encoding] = None
                case FreeCode(value, encoding):
                    alive.pop((value, encoding), None)
        return tuple(alive)

    @property
    def kept_bytes(self) -> int:
        """The bytes of the values and codes that are alive between forward and backward."""
        values = self.problem.values
        codes = (values[value].encodings[number] for value, number in self.kept_codes)
        return sum(values[value].size_bytes for value in self.kept) + sum(code.size_bytes for code in codes)

    @property
    def recomputed(self) -> tuple[int, ...]:
        """The recomputed operations, each once for every further run, in the order of their first runs."""
        runs = Counter(instruction.op for instruction in self.schedule.instructions if isinstance(instruction, Run))
        return tuple(op for op, count in runs.items() for _ in range(count - 1))

    @property
    def encoded(self) -> tuple[tuple[int, int], ...]:
        """Each encoded value with the number of its encoding, once, in the order of the schedule."""
        return self.schedule.encoded

    @property
    def original_bytes(self) -> int:
        """The bytes of the encoded values before encoding."""
        return sum(self.problem.values[value].size_bytes for value, _ in self.encoded)

    @property
    def packed_bytes(self) -> int:
        """The bytes of the codes of the encoded values."""
        return sum(self.problem.values[value].encodings[number].size_bytes for value, number in self.encoded)

    @property
    def encoding_error(self) -> float:
        """The variance that encoding adds to the gradient, as a share of the gradient's own variance."""
        return self.problem.error_of(self.encoded)

    def __str__(self) -> str:
        return plan_text(self)

    def schedule_text(self) -> str:
        """Return all instructions as a program, with bytes, bytes alive, milliseconds and module of each."""
        return program_text(self)
