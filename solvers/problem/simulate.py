"""Simulate a schedule: the bytes alive after each instruction, its peak and its time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import fsum

from .errors import ScheduleError
from .liveness import schedule_of, trace_order
from .plan import Plan
from .problem import EncodingOption, Problem, Reference
from .schedule import Decode, Encode, Forget, Free, FreeCode, Record, Run, Schedule

_ERROR_ROUNDING = 1e-9  # tolerance of sums


@dataclass(frozen=True)
class Timeline:
    """The simulation of a schedule.

    live_bytes: the bytes alive after each instruction, everything counted.
    moment_bytes: the most bytes alive at any moment of each instruction.
    peak_bytes: the highest moment of the schedule.
    peak_instruction: the instruction of that moment, -1 if nothing rises above the resident bytes.
    forward_seconds: the part of `seconds` before backward begins.
    seconds: the time of the schedule.
    """

    live_bytes: tuple[int, ...]
    moment_bytes: tuple[int, ...]
    peak_bytes: int
    peak_instruction: int
    forward_seconds: float
    seconds: float


def simulate(problem: Problem, schedule: Schedule) -> Timeline:
    """Execute the schedule, instruction by instruction.

    `Run` needs the values that it reads alive, and momentarily takes the larger of `working_bytes` and the bytes of its
    results. After a second run, copies of values still alive are dropped. A value that it `reuses` and that is freed
    right after is replaced by the result: its bytes are not counted in addition. A second run of a random operation
    needs the state recorded just before its first run, and saves the current state meanwhile.

    `Encode` and `Decode` need the values that they read alive and their results not alive. They momentarily take the
    larger of their working bytes and their results. A reader of a value whose code is read itself needs the code alive
    too.

    Only backward may read a value decoded from an approximate code, or from one that decodes to a placeholder:
    recomputed forward would carry its error to values for which no error is predicted. Errors of approximate codes may
    add up to `Problem.error_budget`.

    Raises ScheduleError where an instruction cannot be executed or the step would not be the original one. An operation
    that is not repeatable, and the first run of a random one, runs in trace order, in its own phase. Every held value
    must be alive at the end, the outputs of forward at the end of forward.
    """
    _check_segments(problem, schedule)
    machine = _MachineState(problem)
    live_bytes: list[int] = []
    moment_bytes: list[int] = []
    forward_length = schedule.forward_length
    forward_seconds = 0.0
    for index, instruction in enumerate(schedule.instructions):
        if index == forward_length:
            machine.end_forward()
            forward_seconds = fsum(machine.seconds)
        machine.instruction, machine.moment_bytes = index, machine.live_bytes
        match instruction:
            case Run(op):
                reuses = problem.ops[op].reuses
                machine.run(op, reuses if schedule.ends_with(index, reuses) else None)
            case Free(value):
                machine.free(value)
            case Record(op):
                machine.record(op, schedule)
            case Forget(op):
                machine.forget(op)
            case Encode(value, encoding):
                machine.encode(value, encoding)
            case Decode(value, encoding):
                machine.decode(value, encoding)
            case FreeCode(value, encoding):
                machine.free_code(value, encoding)
        live_bytes.append(machine.live_bytes)
        moment_bytes.append(max(machine.moment_bytes, machine.live_bytes))
    if forward_length == len(schedule.instructions):
        machine.end_forward()
        forward_seconds = fsum(machine.seconds)
    machine.end()
    seconds = fsum(machine.seconds)  # exact, so that equal schedules in different orders have equal times
    moments = tuple(moment_bytes)
    return Timeline(tuple(live_bytes), moments, machine.peak_bytes, machine.peak_instruction, forward_seconds, seconds)


def make_plan(
    problem: Problem,
    schedule: Schedule,
    *,
    solver: str,
    budget_bytes: int | None = None,
    lower_bound_seconds: float | None = None,
    solve_seconds: float = 0.0,
    notes: tuple[str, ...] = (),
) -> Plan:
    """Return the plan of a schedule; the only function that makes plans.

    Bytes and seconds as in `Plan`. Raises ScheduleError as `simulate` does.
    """
    timeline = simulate(problem, schedule)
    baseline = baseline_of(problem)
    return Plan(
        problem=problem,
        schedule=schedule,
        live_bytes=timeline.live_bytes,
        peak_bytes=max(timeline.peak_bytes, problem.floor_bytes),
        peak_instruction=timeline.peak_instruction,
        forward_seconds=timeline.forward_seconds,
        seconds=timeline.seconds,
        baseline_seconds=baseline.seconds,
        baseline_peak_bytes=max(baseline.peak_bytes, problem.floor_bytes),
        budget_bytes=budget_bytes,
        lower_bound_seconds=lower_bound_seconds,
        solver=solver,
        solve_seconds=solve_seconds,
        costs=problem.costs,
        notes=notes,
    )


@lru_cache(maxsize=8)
def baseline_of(problem: Problem) -> Reference:
    """Return time and peak of the step with everything kept, in trace order, or the problem's reference."""
    if problem.reference is not None:
        return problem.reference
    kept = simulate(problem, schedule_of(problem, trace_order(problem)))
    return Reference(kept.seconds, kept.peak_bytes)


class _MachineState:
    """The values alive and the progress of the step."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.instruction = -1
        self.live_bytes = self.moment_bytes = problem.resident_bytes
        self.peak_bytes, self.peak_instruction = problem.resident_bytes, -1
        self.seconds: list[float] = []
        self.in_forward = True
        self.alive = bytearray(value.resident for value in problem.values)
        self.has_run = bytearray(len(problem.ops))
        self.states: set[int] = set()  # random operations whose generator state is recorded
        self.codes: set[tuple[int, int]] = set()  # values and the encodings whose codes are alive
        self.approximate: set[int] = set()  # values alive that were decoded for backward alone
        self.decoded: dict[int, int] = {}  # values alive that were decoded, with their encodings
        self.encoding_errors: dict[tuple[int, int], float] = {}
        self.changed_in_place = -1  # a value that has been changed in place and is about to be freed
        self.last_single_run = self.last_draw = -1  # the latest operation that runs once, and first draw

    def run(self, op_index: int, reused: int | None = None) -> None:
        """Run an operation, for the first or second time.

        reused: a value that it changes in place.
        """
        problem, op = self.problem, self.problem.ops[op_index]
        is_second = bool(self.has_run[op_index])
        for value in op.reads:
            if not self.alive[value]:
                raise self.error(f"{op.name} reads {problem.values[value].name}, which is not alive")
            if value in self.approximate and op_index < problem.forward_length:
                raise self.error(f"{op.name} of forward reads {problem.values[value].name}, which is approximate")
            if value in self.decoded:
                self._check_code(op_index, value, self.decoded[value])
        if not op.repeatable:
            self._check_runs_once(op_index, is_second)
        if op.random:
            self._check_draw(op_index, is_second)
        self.has_run[op_index] = 1
        made_bytes = sum(problem.values[value].size_bytes for value in op.makes)
        momentary_bytes = max(op.working_bytes, made_bytes)
        if op.random and is_second:
            momentary_bytes += problem.state_bytes
        if reused is not None:
            self.free(reused)
            self.changed_in_place = reused
        self._rise(self.live_bytes + momentary_bytes)
        for value in op.makes:
            if not self.alive[value]:
                self.alive[value] = 1
                self.live_bytes += problem.values[value].size_bytes
        self.seconds.append(op.seconds)

    def free(self, value_index: int) -> None:
        """Free a value."""
        value = self.problem.values[value_index]
        if value_index == self.changed_in_place:
            self.changed_in_place = -1
            return
        if not self.alive[value_index]:
            raise self.error(f"frees {value.name}, which is not alive")
        if value.resident or value.held:
            raise self.error(f"frees {value.name}, which is {'resident' if value.resident else 'held'}")
        self.alive[value_index] = 0
        self.approximate.discard(value_index)
        number = self.decoded.pop(value_index, None)
        self.live_bytes -= value.size_bytes if number is None else value.decoded_bytes(number)

    def record(self, op_index: int, schedule: Schedule) -> None:
        """Record the generator state before a random operation draws from it."""
        op = self.problem.ops[op_index]
        following = schedule.instructions[self.instruction + 1 : self.instruction + 2]
        if not op.random or self.has_run[op_index] or op_index in self.states or following != (Run(op_index),):
            raise self.error(f"records a state for {op.name}, which must be random and run first right after it")
        self.states.add(op_index)
        self.live_bytes += self.problem.state_bytes
        self._rise(self.live_bytes)

    def forget(self, op_index: int) -> None:
        """Free a recorded generator state."""
        if op_index not in self.states:
            raise self.error(f"forgets the state of {self.problem.ops[op_index].name}, which is not recorded")
        self.states.remove(op_index)
        self.live_bytes -= self.problem.state_bytes

    def encode(self, value_index: int, number: int) -> None:
        """Make a code of a value."""
        value, encoding = self.problem.values[value_index], self._encoding(value_index, number)
        if not self.alive[value_index]:
            raise self.error(f"encodes {value.name}, which is not alive")
        if (value_index, number) in self.codes:
            raise self.error(f"encodes {value.name}, whose code by {encoding.name} is alive already")
        if value_index in self.approximate:
            raise self.error(f"encodes {value.name}, which is approximate already")
        if encoding.fidelity == "approximate":
            self.encoding_errors[value_index, number] = encoding.error
        self._rise(self.live_bytes + max(encoding.encode_working_bytes, encoding.size_bytes))
        self.codes.add((value_index, number))
        self.live_bytes += encoding.size_bytes
        self.seconds.append(encoding.encode_seconds)

    def decode(self, value_index: int, number: int) -> None:
        """Make a value alive again from its code."""
        value, encoding = self.problem.values[value_index], self._encoding(value_index, number)
        if (value_index, number) not in self.codes:
            raise self.error(f"decodes {value.name}, whose code by {encoding.name} is not alive")
        if self.alive[value_index]:
            raise self.error(f"decodes {value.name}, which is alive already")
        self._rise(self.live_bytes + max(encoding.decode_working_bytes, value.decoded_bytes(number)))
        self.alive[value_index] = 1
        self.decoded[value_index] = number
        if encoding.for_backward_alone:
            self.approximate.add(value_index)
        self.live_bytes += value.decoded_bytes(number)
        self.seconds.append(encoding.decode_seconds)

    def free_code(self, value_index: int, number: int) -> None:
        """Free a code."""
        value, encoding = self.problem.values[value_index], self._encoding(value_index, number)
        if (value_index, number) not in self.codes:
            raise self.error(f"frees the code of {value.name} by {encoding.name}, which is not alive")
        self.codes.remove((value_index, number))
        self.live_bytes -= encoding.size_bytes

    def end_forward(self) -> None:
        """Check that forward has made its outputs and run its operations that run once."""
        self.in_forward = False
        self._check_made(range(self.problem.forward_length), "the end of forward")

    def end(self) -> None:
        """Check that the step is complete."""
        self.instruction = -1
        self._check_made(range(len(self.problem.ops)), "the end of the step")
        error, budget = fsum(self.encoding_errors.values()), self.problem.error_budget
        if error > budget * (1 + _ERROR_ROUNDING):
            raise self.error(f"the codes of the schedule have an error of {error:g} in all, above {budget:g}")

    def error(self, message: str) -> ScheduleError:
        """Return an error with the current instruction."""
        return ScheduleError(f"instruction {self.instruction} {message}" if self.instruction >= 0 else message)

    def _encoding(self, value_index: int, number: int) -> EncodingOption:
        value = self.problem.values[value_index]
        if not 0 <= number < len(value.encodings):
            raise self.error(f"names encoding {number} of {value.name}, which has {len(value.encodings)}")
        return value.encodings[number]

    def _check_code(self, op_index: int, value_index: int, number: int) -> None:
        value, encoding = self.problem.values[value_index], self.problem.values[value_index].encodings[number]
        if encoding.is_read_itself and (value_index, number) not in self.codes:
            reader = self.problem.ops[op_index].name
            raise self.error(f"{reader} reads the code of {value.name} by {encoding.name}, which is not alive")

    def _rise(self, bytes_now: int) -> None:
        self.moment_bytes = max(self.moment_bytes, bytes_now)
        if bytes_now > self.peak_bytes:
            self.peak_bytes, self.peak_instruction = bytes_now, self.instruction

    def _check_phase(self, op_index: int) -> None:
        if self.in_forward != (op_index < self.problem.forward_length):
            phase = "backward" if self.in_forward else "forward"
            raise self.error(f"runs {self.problem.ops[op_index].name} outside {phase}, to which it belongs")

    def _check_runs_once(self, op_index: int, is_second: bool) -> None:
        name = self.problem.ops[op_index].name
        if is_second:
            raise self.error(f"runs {name} a second time, which is not repeatable")
        if op_index < self.last_single_run:
            raise self.error(f"runs {name} after {self.problem.ops[self.last_single_run].name}, out of trace order")
        self._check_phase(op_index)
        self.last_single_run = op_index

    def _check_draw(self, op_index: int, is_second: bool) -> None:
        name = self.problem.ops[op_index].name
        if is_second:
            if op_index not in self.states:
                raise self.error(f"runs {name} a second time without its generator state recorded")
            return
        if op_index < self.last_draw:
            raise self.error(f"draws for {name} after {self.problem.ops[self.last_draw].name}, out of trace order")
        self._check_phase(op_index)
        self.last_draw = op_index

    def _check_made(self, operations: range, when: str) -> None:
        for index in operations:
            op = self.problem.ops[index]
            if (op.random or not op.repeatable) and not self.has_run[index]:
                raise self.error(f"{op.name} has not run by {when}")
            for value in op.makes:
                if self.problem.values[value].held and not self.alive[value]:
                    raise self.error(f"{self.problem.values[value].name} is held but not there by {when}")


def _check_segments(problem: Problem, schedule: Schedule) -> None:
    blocks = range(len(problem.block_classes))
    expected = [*blocks, *reversed(blocks)]
    if [segment.block for segment in schedule.segments] != expected:
        raise ScheduleError(f"segments must be forward of blocks 0..{len(blocks) - 1}, then backward of the same")
    end = 0
    for segment in schedule.segments:
        if segment.start != end or segment.stop < segment.start:
            raise ScheduleError(f"the segment of block {segment.block} starts at {segment.start}, not at {end}")
        end = segment.stop
    if end != len(schedule.instructions):
        raise ScheduleError(f"segments end at {end}, the instructions at {len(schedule.instructions)}")
