"""A step as a chain of links: the bytes and seconds of each link in each of its schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import numpy as np

from ..blocks.block_schedules import BlockEvaluator, BlockSchedule
from ..blocks.block_values import alike, middle_member, shared_values, stream_values
from ..problem.liveness import lives_of
from ..problem.problem import Problem


@dataclass(frozen=True)
class LinkSchedule:
    """A schedule of a link, and the costs of recomputing it.

    kept_bytes, backward_peak_bytes, forward_peak_bytes: as in `BlockSchedule`.
    seconds: beyond running everything once.
    again_seconds: the same if the link's forward is recomputed, making only the values that this schedule keeps and
        those that the next link reads.
    last_seconds: the same if also no link comes after it.
    again_peak_bytes, last_peak_bytes: the peak of such a forward above the bytes alive when it begins.
    forward_seconds, forward_again_seconds: of its forward alone, for the first run and for a later one.
    recompute_seconds, recompute_peak_bytes: of making the values that the next link reads from the link's input and
        from the values that this schedule keeps; infinite seconds if that is impossible.
    backward_seconds: of its backward, beyond running everything once.
    """

    kept_bytes: int
    backward_peak_bytes: int
    forward_peak_bytes: int
    seconds: float
    again_seconds: float
    last_seconds: float
    again_peak_bytes: int
    last_peak_bytes: int
    forward_seconds: float
    forward_again_seconds: float
    recompute_seconds: float
    recompute_peak_bytes: int
    backward_seconds: float


@dataclass(frozen=True)
class Link:
    """One block of a chain.

    kind: equal for links that are equal in all but their bases.
    schedules: in any order; the tables refer to them by number.
    input_bytes: made by the link before for this link alone; they may be dropped and recomputed.
    base_bytes: alive when the link's backward begins whatever is chosen, without links' inputs and bytes kept by
        schedules.
    forward_base_bytes: the same when its forward first begins.
    first_sweep_seconds: of running its forward for the first time, keeping nothing.
    sweep_seconds: of recomputing it so, infinite if that is impossible.
    sweep_peak_bytes: the peak of a sweep above the bytes alive when it begins.
    """

    kind: int
    schedules: tuple[LinkSchedule, ...]
    input_bytes: int
    base_bytes: int
    forward_base_bytes: int
    first_sweep_seconds: float
    sweep_seconds: float
    sweep_peak_bytes: int


@dataclass(frozen=True)
class Runs:
    """The operations that a link of a class runs, as positions in its operations.

    first_sweep, again_sweep: its forward when it keeps nothing, for the first time and again.
    forward, backward: for each schedule.
    again, last: for each schedule its recomputed forward, `last` if no link comes after it.
    recompute: for each schedule the runs that make the next link's input from the values kept.
    """

    first_sweep: tuple[int, ...]
    again_sweep: tuple[int, ...]
    forward: tuple[tuple[int, ...], ...]
    again: tuple[tuple[int, ...], ...]
    last: tuple[tuple[int, ...], ...]
    recompute: tuple[tuple[int, ...], ...]
    backward: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Chain:
    """The links of a problem, and the operations that they run."""

    links: tuple[Link, ...]
    runs: tuple[Runs, ...]


def chain_of(problem: Problem, schedules: Mapping[int, Sequence[BlockSchedule]]) -> Chain:
    """Build the chain of a problem's blocks.

    schedules: for each distinct block (`alike`).
    """
    kinds, streams = alike(problem), stream_values(problem)
    base, forward_base = _bases(problem, streams)
    runs: dict[int, Runs] = {}
    link_of_kind: dict[int, partial[Link]] = {}
    for kind in dict.fromkeys(kinds):
        block = middle_member(kinds, kind)
        next_inputs = streams[block + 1] if block + 1 < len(streams) else frozenset()
        runs[kind], link_of_kind[kind] = _runs_and_link(problem, block, kind, schedules[kind], next_inputs)
    size = [value.size_bytes for value in problem.values]
    links = tuple(
        link_of_kind[kind](
            input_bytes=sum(size[value] for value in streams[block]),
            base_bytes=base[block],
            forward_base_bytes=forward_base[block],
        )
        for block, kind in enumerate(kinds)
    )
    return Chain(links, tuple(runs[kind] for kind in kinds))


def _runs_and_link(
    problem: Problem, block: int, kind: int, schedules: Sequence[BlockSchedule], next_inputs: frozenset[int]
) -> tuple[Runs, partial[Link]]:
    """Return the runs of a kind of block, and its link without the bytes of inputs and bases."""
    evaluator, forward = BlockEvaluator(problem, block), problem.segment_operations[block]
    first_sweep = _first_sweep(problem, forward, evaluator)
    again_sweep = trimmed(problem, forward, next_inputs)
    schedule_runs, link_schedules = [], []
    for schedule in schedules:
        runs = _ScheduleRuns.of(evaluator, schedule, next_inputs)
        schedule_runs.append([evaluator.positions(operations) for operations in runs.operations])
        link_schedules.append(_link_schedule(evaluator, schedule, runs))
    runs = Runs(evaluator.positions(first_sweep), evaluator.positions(again_sweep), *zip(*schedule_runs, strict=True))
    link = partial(
        Link,
        kind=kind,
        schedules=tuple(link_schedules),
        first_sweep_seconds=_seconds(problem, first_sweep),
        sweep_seconds=repeated_seconds(problem, again_sweep),
        sweep_peak_bytes=evaluator.forward_peak(first_sweep, frozenset()),
    )
    return runs, link


@dataclass(frozen=True)
class _ScheduleRuns:
    """The operations that a link runs by one schedule.

    required: the values that backward requires, of those made for this link and the next one alone.
    operations: forward, again, last, recompute and backward, as in `Runs`.
    """

    required: frozenset[int]
    operations: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(evaluator: BlockEvaluator, schedule: BlockSchedule, next_inputs: frozenset[int]) -> _ScheduleRuns:
        """Return the runs of a schedule; `next_inputs` are the values made for the next link alone."""
        problem = evaluator.problem
        forward = tuple(evaluator.operations[position] for position in schedule.forward)
        backward = tuple(evaluator.operations[position] for position in schedule.backward)
        required = evaluator.required_values(backward)
        again = trimmed(problem, forward, required | next_inputs)
        last = trimmed(problem, forward, required)
        everything = problem.segment_operations[evaluator.block]
        recompute = trimmed(problem, everything, next_inputs, required - next_inputs)
        return _ScheduleRuns(required, (forward, again, last, recompute, backward))


def _link_schedule(evaluator: BlockEvaluator, schedule: BlockSchedule, runs: _ScheduleRuns) -> LinkSchedule:
    """Return a schedule of a block with the costs of recomputing it."""
    problem, kept = evaluator.problem, runs.required & evaluator.local_values
    forward, again, last, recompute, backward = runs.operations
    backward_seconds = _seconds(problem, backward) - _seconds(problem, evaluator.operations)
    return LinkSchedule(
        kept_bytes=schedule.kept_bytes,
        backward_peak_bytes=schedule.backward_peak_bytes,
        forward_peak_bytes=schedule.forward_peak_bytes,
        seconds=schedule.seconds,
        again_seconds=repeated_seconds(problem, again) + backward_seconds,
        last_seconds=repeated_seconds(problem, last) + backward_seconds,
        again_peak_bytes=evaluator.forward_peak(again, kept),
        last_peak_bytes=evaluator.forward_peak(last, kept),
        forward_seconds=_seconds(problem, forward),
        forward_again_seconds=repeated_seconds(problem, again),
        recompute_seconds=repeated_seconds(problem, recompute),
        recompute_peak_bytes=evaluator.forward_peak(recompute, frozenset()),
        backward_seconds=backward_seconds,
    )


def trimmed(
    problem: Problem, forward: Sequence[int], targets: frozenset[int], available: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Return the fewest of these runs, in order, that make the targets from the available values."""
    needed, chosen = set(targets - available), []
    for index in reversed(forward):
        op = problem.ops[index]
        if any(value in needed for value in op.makes):
            needed.difference_update(op.makes)
            needed.update(value for value in op.reads if value not in available)
            chosen.append(index)
    return tuple(reversed(chosen))


def repeated_seconds(problem: Problem, runs: Sequence[int]) -> float:
    """Return the time of running these a second time, infinite if one of them is not repeatable."""
    if not all(problem.ops[index].repeatable for index in runs):
        return inf
    return _seconds(problem, runs)


def _seconds(problem: Problem, runs: Sequence[int]) -> float:
    return sum(problem.ops[index].seconds for index in runs)


def _first_sweep(problem: Problem, forward: Sequence[int], evaluator: BlockEvaluator) -> tuple[int, ...]:
    """Return the runs of a forward that cannot wait for backward, whatever is kept: see `Walk.let_forward_wait`."""
    required: set[int] = set()
    chosen = []
    for index in reversed(forward):
        op = problem.ops[index]
        outside = any(value not in evaluator.local_values for value in op.makes)
        if not op.repeatable or op.random or not op.makes or outside or required.intersection(op.makes):
            chosen.append(index)
            required.update(op.reads)
    return tuple(reversed(chosen))


def storing(chain: Chain, chosen: Sequence[int]) -> Chain:
    """Return the chain after a sweep in which link l has kept the values of its schedule chosen[l].

    The bytes kept then belong to the bases. A later sweep makes only the values that the next link reads, from those
    kept; the chosen schedule is the only one left.
    """
    links, runs, stored_bytes = [], [], 0
    for link, link_runs, number in zip(chain.links, chain.runs, chosen, strict=True):
        schedule = link.schedules[number]
        stored_bytes += schedule.kept_bytes
        stored_schedule = replace(
            schedule,
            kept_bytes=0,
            backward_peak_bytes=schedule.backward_peak_bytes - schedule.kept_bytes,
            again_peak_bytes=schedule.recompute_peak_bytes,
            last_peak_bytes=0,
            again_seconds=schedule.recompute_seconds + schedule.backward_seconds,
            last_seconds=schedule.backward_seconds,
        )
        links.append(
            replace(
                link,
                schedules=(stored_schedule,),
                base_bytes=link.base_bytes + stored_bytes,
                sweep_seconds=schedule.recompute_seconds,
                sweep_peak_bytes=schedule.recompute_peak_bytes,
            )
        )
        recompute, backward = link_runs.recompute[number], link_runs.backward[number]
        runs.append(Runs((), recompute, (), (recompute,), ((),), (recompute,), (backward,)))
    return Chain(tuple(links), tuple(runs))


def _bases(problem: Problem, streams: tuple[frozenset[int], ...]) -> tuple[list[int], list[int]]:
    """Return for each block the bytes alive when its backward begins, and when its forward begins.

    Everything is kept; the bytes that schedules keep and the streams do not count. A value that the forward of several
    blocks reads stays until the first of them has run backward, since its forward may be recomputed then.
    """
    blocks, boundary = len(problem.block_classes), problem.forward_length
    order = problem.segment_operations
    lives, starts = lives_of(problem, order), np.cumsum([0, *(len(segment) for segment in order)])
    shared = shared_values(problem)
    free = frozenset().union(*streams)
    change = np.zeros(len(lives.runs) + 1, dtype=np.int64)
    dies_at = dict(zip(lives.dies.tolist(), lives.dies_at.tolist(), strict=True))
    for value, position in zip(lives.born.tolist(), lives.born_at.tolist(), strict=True):
        in_forward = problem.maker[value] < boundary
        if value in free or (in_forward and value not in shared and not problem.values[value].held):
            continue
        size_bytes, end = problem.values[value].size_bytes, dies_at.get(value, len(lives.runs))
        if in_forward and value in shared:
            first_reader = min(problem.ops[reader].block for reader in problem.readers[value])
            end = max(end, int(starts[2 * blocks - 1 - first_reader]))
        change[position + 1] += size_bytes
        if end < len(lives.runs):
            change[end + 1] -= size_bytes
    alive = np.cumsum(change) + problem.resident_bytes
    at_start = [int(alive[start]) for start in starts[:-1]]
    return at_start[blocks:][::-1], at_start[:blocks]
