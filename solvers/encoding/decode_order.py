"""Plans with values kept encoded: ordinary solvers answer the recoded problem, and their answers are turned back."""

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
    """The schedule of a problem for a run order of the merged problem of a choice (`merged_problem`)."""
    if not choice:
        return schedule_of(problem, order)
    recoding = encoded_problem_of(problem, choice)
    merged = schedule_of(recoding.merged, order)
    return Schedule(tuple(_original(recoding, one) for one in merged.instructions), merged.segments)


def decoded_order(recoding: EncodedProblem, order: RunOrder) -> RunOrder:
    """The run order of the merged problem for one of the reduced problem: never a higher peak, never more time.

    What is decoded while the value itself is alive need not be, and what is encoded and not decoded neither. So the
    value is alive in the merged problem only where it, or what was decoded from it, is alive in the reduced one.
    """
    order = _with_late_views(recoding, order)
    lives = lives_of(recoding.reduced, order)
    decodes = np.array([isinstance(one, Decode) for one in recoding.operations], dtype=bool)
    value_of = np.array([one.value if isinstance(one, Decode) else -1 for one in recoding.operations], dtype=np.int64)
    positions = np.flatnonzero(decodes[lives.runs])
    needless = np.zeros(len(lives.runs), dtype=bool)
    needless[positions] = _alive_at(lives, value_of[lives.runs[positions]], positions)
    if needless.any():
        order = without_runs(order, needless)
    return without_idle_codes(recoding, order)


def _with_late_views(recoding: EncodedProblem, order: RunOrder) -> RunOrder:
    """The order with codes that are read themselves decoded right before they are read: the value may be gone by then,
    where one that is kept instead would have to stay."""
    ops = recoding.reduced.ops
    views = {place for place, op in enumerate(recoding.merged.ops) if op.view_bytes is not None}
    if not views:
        return order
    waiting: dict[int, int] = {}  # by what they make
    written = []
    for segment in order:
        runs: list[int] = []
        for op in segment:
            if op in views:
                waiting[ops[op].makes[0]] = op
            else:
                runs += [waiting.pop(value) for value in ops[op].reads if value in waiting]
                runs.append(op)
        written.append(tuple(runs))
    return tuple(written)


def _alive_at(lives: Lives, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """For pairs of value and position whether the value, made before, is alive after the run there."""
    span = len(lives.runs) + 1
    born, dead = np.sort(lives.born * span + lives.born_at), np.sort(lives.dies * span + lives.dies_at)
    start, here = values * span, values * span + positions
    births = np.searchsorted(born, here) - np.searchsorted(born, start)
    deaths = np.searchsorted(dead, here, side="right") - np.searchsorted(dead, start)
    return births > deaths


def without_idle_codes(recoding: EncodedProblem, order: RunOrder) -> RunOrder:
    """The order without what is encoded and not decoded before it is encoded again, and what runs again for that."""
    lives = lives_of(recoding.merged, order)
    span = max(len(lives.runs), 1)
    dead_at_once = np.intersect1d(lives.born * span + lives.born_at, lives.dies * span + lives.dies_at) % span
    encodes = np.array([isinstance(one, Encode) for one in recoding.operations], dtype=bool)
    idle = np.zeros(len(lives.runs), dtype=bool)
    idle[dead_at_once] = True
    idle &= encodes[lives.runs]
    if not idle.any():
        return order
    return without_idle_codes(recoding, without_idle_runs(recoding.merged, without_runs(order, idle)))


def _original(recoding: EncodedProblem, instruction: Instruction) -> Instruction:
    """An instruction of the merged problem's schedule as one of the original problem's."""
    match instruction:
        case Run(op):
            return recoding.operations[op]
        case Free(value) if value in recoding.codes:
            return FreeCode(*recoding.codes[value])
        case Record(op) | Forget(op):
            run = recoding.operations[op]
            assert isinstance(run, Run)
            return type(instruction)(run.op)
    return instruction


def is_exact_where_due(problem: Problem, choice: Choice, order: RunOrder) -> bool:
    """Whether in an order of a choice's merged problem forward reads nothing that was decoded for backward alone."""
    inexact = of_backward_alone(problem, choice)
    if not inexact.any():
        return True
    recoding = encoded_problem_of(problem, choice)
    lives = lives_of(recoding.merged, order)
    of_forward = np.array(
        [isinstance(one, Run) and one.op < problem.forward_length for one in recoding.operations], dtype=bool
    )
    read_at, read = arrays_of(recoding.merged).reads.gather(lives.runs)
    matters = of_forward[lives.runs[read_at]] & (read < len(inexact))
    matters[matters] = inexact[read[matters]]
    span = len(lives.runs) + 1
    born = np.sort(lives.born * span + lives.born_at)
    latest = born[np.searchsorted(born, read[matters] * span + read_at[matters]) - 1] % span
    decodes = np.array([isinstance(one, Decode) for one in recoding.operations], dtype=bool)
    return not decodes[lives.runs[latest]].any()


def of_backward_alone(problem: Problem, choice: Choice) -> np.ndarray:
    """For each value whether a choice gives it an encoding that is for backward alone."""
    found = np.zeros(len(problem.values), dtype=bool)
    found[[v for v, number in choice if problem.values[v].encodings[number].for_backward_alone]] = True
    return found


def with_codes(problem: Problem, choice: Choice, order: RunOrder) -> RunOrder:
    """The run order of a choice's merged problem in which chosen values are encoded wherever they wait.

    A value waits where it stays alive from one segment to a later one of backward. It is encoded after its last read
    before the first such wait, and decoded before its first read after each. One decoded for backward alone does not
    count as waiting before forward, run again, has read it for the last time.
    """
    recoding = encoded_problem_of(problem, choice)
    place_of = {run.op: place for place, run in enumerate(recoding.operations) if isinstance(run, Run)}
    codecs: dict[int, dict[type, int]] = {}
    for place, one in enumerate(recoding.operations):
        if not isinstance(one, Run):
            codecs.setdefault(one.value, {})[type(one)] = place
    before: dict[int, list[int]] = {}
    after: dict[int, list[int]] = {}
    for value, start, end, first in _waits(problem, choice, order):
        if first:
            after.setdefault(start, []).append(codecs[value][Encode])
        before.setdefault(end, []).append(codecs[value][Decode])
    position, written = 0, []
    for segment in order:
        runs: list[int] = []
        for op in segment:
            runs += before.get(position, ())
            runs.append(place_of[op])
            runs += after.get(position, ())
            position += 1
        written.append(tuple(runs))
    return tuple(written)


def _waits(problem: Problem, choice: Choice, order: RunOrder) -> Iterator[tuple[int, int, int, bool]]:
    """(value, position of the last read before, position of the first read after, whether it is the first since made)
    for every wait of a chosen value."""
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
    encoded = -1  # the latest life whose value has been encoded, by its first event
    life = np.maximum.accumulate(np.where(is_make, np.arange(len(event)), -1))
    for at in np.flatnonzero(waits).tolist():
        yield int(value[at]), int(position[at]), int(position[at + 1]), bool(life[at] != encoded)
        encoded = life[at]
