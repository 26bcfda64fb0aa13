"""Turn solutions of an encoded problem into schedules of the original problem, and run orders into encoded ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from ..polish import without_idle_runs, without_runs
from ..problem.encoded_problem import EncodedProblem, encoded_problem_of
from ..problem.liveness import Choice, Lives, RunOrder, lives_of, schedule_of
from ..problem.problem import Problem
from ..problem.problem_arrays import arrays_of
from ..problem.schedule import Decode, Encode, Forget, Free, FreeCode, Instruction, Record, Run, Schedule


def encoded_schedule(problem: Problem, choice: Choice, order: RunOrder) -> Schedule:
    """Return the schedule of a problem for a run order of the merged problem of a choice (`merged_problem`)."""
    if not choice:
        return schedule_of(problem, order)
    encoded = encoded_problem_of(problem, choice)
    merged = schedule_of(encoded.merged, order)
    return Schedule(
        tuple(_original_instruction(encoded, instruction) for instruction in merged.instructions), merged.segments
    )


def decoded_order(encoded: EncodedProblem, order: RunOrder) -> RunOrder:
    """Return the run order of the merged problem for one of the reduced problem: no higher peak, no more time.

    Decoding a value that is alive is left out, and so is encoding without decoding. So the value is alive in the merged
    problem only where it, or a value decoded from it, is alive in the reduced one.
    """
    order = _with_late_views(encoded, order)
    lives = lives_of(encoded.reduced, order)
    decodes = np.array([isinstance(operation, Decode) for operation in encoded.operations], dtype=bool)
    value_of = np.array(
        [operation.value if isinstance(operation, Decode) else -1 for operation in encoded.operations], dtype=np.int64
    )
    positions = np.flatnonzero(decodes[lives.runs])
    needless = np.zeros(len(lives.runs), dtype=bool)
    needless[positions] = _alive_at(lives, value_of[lives.runs[positions]], positions)
    if needless.any():
        order = without_runs(order, needless)
    return without_idle_codes(encoded, order)


def _with_late_views(encoded: EncodedProblem, order: RunOrder) -> RunOrder:
    """Return the order with codes that are read themselves decoded right before they are read.

    Then the value may be freed before, while an earlier decoding that is left out would keep the value alive.
    """
    ops = encoded.reduced.ops
    views = {place for place, op in enumerate(encoded.merged.ops) if op.view_bytes is not None}
    if not views:
        return order
    waiting: dict[int, int] = {}  # value: the operation that makes it
    segments = []
    for segment in order:
        runs: list[int] = []
        for op in segment:
            if op in views:
                waiting[ops[op].makes[0]] = op
            else:
                runs += [waiting.pop(value) for value in ops[op].reads if value in waiting]
                runs.append(op)
        segments.append(tuple(runs))
    return tuple(segments)


def _alive_at(lives: Lives, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return for pairs of value and position whether the value, made before, is alive after the run there."""
    span = len(lives.runs) + 1
    born, dead = np.sort(lives.born * span + lives.born_at), np.sort(lives.dies * span + lives.dies_at)
    start, here = values * span, values * span + positions
    births = np.searchsorted(born, here) - np.searchsorted(born, start)
    deaths = np.searchsorted(dead, here, side="right") - np.searchsorted(dead, start)
    return births > deaths


def without_idle_codes(encoded: EncodedProblem, order: RunOrder) -> RunOrder:
    """Return the order without encodings that are not decoded before the next, and without second runs for them."""
    lives = lives_of(encoded.merged, order)
    span = max(len(lives.runs), 1)
    dead_at_once = np.intersect1d(lives.born * span + lives.born_at, lives.dies * span + lives.dies_at) % span
    encodes = np.array([isinstance(operation, Encode) for operation in encoded.operations], dtype=bool)
    idle = np.zeros(len(lives.runs), dtype=bool)
    idle[dead_at_once] = True
    idle &= encodes[lives.runs]
    if not idle.any():
        return order
    return without_idle_codes(encoded, without_idle_runs(encoded.merged, without_runs(order, idle)))


def _original_instruction(encoded: EncodedProblem, instruction: Instruction) -> Instruction:
    """Translate an instruction of the merged problem's schedule into one of the original problem."""
    match instruction:
        case Run(op):
            return encoded.operations[op]
        case Free(value) if value in encoded.codes:
            return FreeCode(*encoded.codes[value])
        case Record(op) | Forget(op):
            run = encoded.operations[op]
            assert isinstance(run, Run)
            return type(instruction)(run.op)
    return instruction


def is_exact_where_due(problem: Problem, choice: Choice, order: RunOrder) -> bool:
    """Return whether, in an order of the merged problem, forward reads no value decoded for backward alone."""
    inexact = of_backward_alone(problem, choice)
    if not inexact.any():
        return True
    encoded = encoded_problem_of(problem, choice)
    lives = lives_of(encoded.merged, order)
    of_forward = np.array(
        [isinstance(operation, Run) and operation.op < problem.forward_length for operation in encoded.operations],
        dtype=bool,
    )
    read_at, read = arrays_of(encoded.merged).reads.gather(lives.runs)
    matters = of_forward[lives.runs[read_at]] & (read < len(inexact))
    matters[matters] = inexact[read[matters]]
    span = len(lives.runs) + 1
    born = np.sort(lives.born * span + lives.born_at)
    latest = born[np.searchsorted(born, read[matters] * span + read_at[matters]) - 1] % span
    decodes = np.array([isinstance(operation, Decode) for operation in encoded.operations], dtype=bool)
    return not decodes[lives.runs[latest]].any()


def of_backward_alone(problem: Problem, choice: Choice) -> np.ndarray:
    """Return for each value whether its encoding in a choice is for backward alone."""
    alone = np.zeros(len(problem.values), dtype=bool)
    alone[[v for v, number in choice if problem.values[v].encodings[number].for_backward_alone]] = True
    return alone


def with_codes(problem: Problem, choice: Choice, order: RunOrder) -> RunOrder:
    """Return the run order of the merged problem in which chosen values are encoded wherever they wait.

    A value waits where it stays alive from one segment to a later one of backward. It is encoded after its last read
    before the first such wait, and decoded before its first read after each. A value decoded for backward alone does
    not wait before the last read of recomputed forward.
    """
    encoded = encoded_problem_of(problem, choice)
    place_of = {run.op: place for place, run in enumerate(encoded.operations) if isinstance(run, Run)}
    codecs: dict[int, dict[type, int]] = {}
    for place, operation in enumerate(encoded.operations):
        if not isinstance(operation, Run):
            codecs.setdefault(operation.value, {})[type(operation)] = place
    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    for value, start, end, first in _waits(problem, choice, order):
        if first:
            after.setdefault(start, []).append(codecs[value][Encode])
        before.setdefault(end, []).append(codecs[value][Decode])
    position, segments = 0, []
    for segment in order:
        runs: list[int] = []
        for op in segment:
            runs += before.get(position, ())
            runs.append(place_of[op])
            runs += after.get(position, ())
            position += 1
        segments.append(tuple(runs))
    return tuple(segments)


def _waits(problem: Problem, choice: Choice, order: RunOrder) -> Iterator[tuple[int, int, int, bool]]:
    """Yield every wait of a chosen value.

    A wait has four parts: the value, the position of the last read before, that of the first read after, and whether it
    is the first since the value was made.
    """
    arrays = arrays_of(problem)
    runs = np.array(list(chain.from_iterable(order)), dtype=np.int64)
    segment_of = np.repeat(np.arange(len(order)), [len(segment) for segment in order])
    chosen = np.zeros(len(problem.values), dtype=bool)
    chosen[[value for value, _ in choice]] = True
    read_at, read = arrays.reads.gather(runs)
    made_at, made = arrays.makes.gather(runs)
    read_at, read, made_at, made = read_at[chosen[read]], read[chosen[read]], made_at[chosen[made]], made[chosen[made]]
    span = 2 * len(runs) + 2
    event = np.sort(np.concatenate((read * span + 2 * read_at, made * span + 2 * made_at + 1)))
    value, position, is_make = event // span, event % span >> 1, event & 1 == 1
    segment = segment_of[position]
    waits = (value[1:] == value[:-1]) & ~is_make[1:] & (segment[1:] != segment[:-1]) & (segment[1:] >= len(order) // 2)
    of_forward = ~is_make & (runs[position] < problem.forward_length) & of_backward_alone(problem, choice)[value]
    last_of_forward = np.full(len(problem.values), -1)
    np.maximum.at(last_of_forward, value[of_forward], position[of_forward])
    waits &= position[1:] > last_of_forward[value[1:]]
    encoded = -1  # the first event of the latest life whose value has been encoded
    life = np.maximum.accumulate(np.where(is_make, np.arange(len(event)), -1))
    for at in np.flatnonzero(waits).tolist():
        yield int(value[at]), int(position[at]), int(position[at + 1]), bool(life[at] != encoded)
        encoded = life[at]
