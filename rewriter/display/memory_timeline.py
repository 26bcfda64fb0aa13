"""Splits up the live bytes of a plan, kernel by kernel, for pictures and to locate the peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...solvers.problem.module_names import plain_operation
from ...solvers.problem.plan import Plan
from ...solvers.problem.schedule import Decode, Encode, Run
from ...solvers.problem.simulate import simulate


@dataclass(frozen=True)
class Moment:
    """One run of an operation, in bytes. All but `within_bytes` hold when the run is over and its freed values are
    gone.

    instruction: the index of the instruction.
    operation: the index of the operation.
    kind: "forward", "backward" or "recomputed" (a second run).
    gradients_bytes: finished and incoming gradients.
    returned_bytes: the outputs of forward.
    activation_bytes: all other values that the step made.
    within_bytes: the total at the fullest point during the run.
    """

    instruction: int
    operation: int
    kind: str
    gradients_bytes: int
    returned_bytes: int
    activation_bytes: int
    within_bytes: int


@dataclass(frozen=True)
class Peak:
    """The fullest moment of a plan and the bytes present there.

    operation: the operation that runs. It is empty if the optimizer's own step is fullest, or the state before the
        step.
    module: the module of the operation.
    phase: the phase of the step.
    resident_bytes: parameters, buffers and inputs.
    gradients_bytes: finished and incoming gradients.
    returned_bytes: the outputs of forward.
    activation_bytes: all other values that the step made.
    running_bytes: the bytes that the operation at work takes.
    """

    operation: str
    module: str
    phase: str
    resident_bytes: int
    gradients_bytes: int
    returned_bytes: int
    activation_bytes: int
    running_bytes: int

    @property
    def description(self) -> str:
        """Describe the place in words."""
        if not self.operation:
            return "outside of forward and backward"
        return f"{self.operation}{' of ' + self.module if self.module else ''} ({self.phase})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts, for JSON."""
        return asdict(self)


def moments_of(plan: Plan) -> list[Moment]:
    """Return every run of the plan in order. The totals are the simulator's and are only split up here."""
    problem, instructions = plan.problem, plan.schedule.instructions
    moment_bytes = simulate(problem, plan.schedule).moment_bytes
    starts = [i for i, instruction in enumerate(instructions) if isinstance(instruction, Run)]
    started: set[int] = set()
    held_bytes = {"forward": 0, "backward": 0}
    moments: list[Moment] = []
    for start, following in zip(starts, [*starts[1:], len(instructions)], strict=True):
        index = instructions[start].op  # pyright: ignore[reportAttributeAccessIssue]
        op, recomputed = problem.ops[index], index in started
        phase = "forward" if index < problem.forward_length else "backward"
        if not recomputed:
            held_bytes[phase] += sum(problem.values[v].size_bytes for v in op.makes if problem.values[v].held)
        started.add(index)
        held = held_bytes["forward"] + held_bytes["backward"]
        moments.append(
            Moment(
                instruction=start,
                operation=index,
                kind="recomputed" if recomputed else phase,
                gradients_bytes=held_bytes["backward"],
                returned_bytes=held_bytes["forward"],
                activation_bytes=plan.live_bytes[following - 1] - problem.resident_bytes - held,
                within_bytes=moment_bytes[start],
            )
        )
    return moments


def peak_of(plan: Plan) -> Peak:
    """Return the fullest moment of the plan."""
    problem, moments = plan.problem, moments_of(plan)
    fullest = plan.schedule.instructions[plan.peak_instruction] if plan.peak_instruction >= 0 else None
    if isinstance(fullest, (Encode, Decode)):
        before = [moment for moment in moments if moment.instruction < plan.peak_instruction]
        return _peak(plan, _place_of_codec(plan, fullest), before)
    at = next((i for i, m in enumerate(moments) if m.within_bytes == plan.peak_bytes), None)
    if at is None:
        return _peak(plan, ("", "", ""), [])
    moment, op = moments[at], problem.ops[moments[at].operation]
    phase = "backward, recomputed" if moment.kind == "recomputed" else moment.kind
    return _peak(plan, (plain_operation(op.name), op.module, phase), moments[:at])


def _peak(plan: Plan, place: tuple[str, str, str], before: Sequence[Moment]) -> Peak:
    """Return the peak at a place (operation, module and phase), with the bytes that the runs before it have left."""
    last = before[-1] if before else None
    split = (last.gradients_bytes, last.returned_bytes, last.activation_bytes) if last else (0, 0, 0)
    resident_bytes = plan.problem.resident_bytes
    return Peak(*place, resident_bytes, *split, plan.peak_bytes - resident_bytes - sum(split))


def _place_of_codec(plan: Plan, fullest: Encode | Decode) -> tuple[str, str, str]:
    """Return operation, module and phase of a value that is encoded or decoded."""
    problem, value = plan.problem, plan.problem.values[fullest.value]
    maker = problem.ops[problem.maker[fullest.value]]
    operation = f"{'encoding' if isinstance(fullest, Encode) else 'decoding'} of {plain_operation(maker.name)}"
    phase = "forward" if plan.peak_instruction < plan.schedule.forward_length else "backward"
    return operation, f"{maker.module} ({value.encodings[fullest.encoding].name})", phase
