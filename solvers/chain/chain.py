"""A step as a chain of links: the bytes and seconds of each link in each of its schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from ..blocks.block_schedules import BlockEvaluator, BlockSchedule, operations_of
from ..blocks.block_values import alike, middle_member, shared_values, stream_values
from ..problem.liveness import lives_of
from ..problem.problem import Problem


@dataclass(frozen=True)
class LinkSchedule:
    """A schedule of a link, and the costs of recomputing it.

    kept_bytes, backward_peak_bytes, forward_peak_bytes: as in `BlockSchedule`.
    seconds: beyond running everything once.
    again_seconds: the same if the link's forward has run before, and now makes only the values that this schedule
        keeps and those that the next link reads.
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
    first_pass_seconds: of running its forward for the first time, keeping nothing.
    pass_seconds: of doing so again, infinite if that is impossible.
    pass_peak_bytes: the peak of a pass above the bytes alive when it begins.
    """

    kind: int
    schedules: tuple[LinkSchedule, ...]
    input_bytes: int
    base_bytes: int
    forward_base_bytes: int
    first_pass_seconds: float
    pass_seconds: float
    pass_peak_bytes: int


@dataclass(frozen=True)
class Runs:
    """The operations that a link of a class runs, as positions in its operations.

    first_pass, again_pass: its forward when it keeps nothing, for the first time and again.
    forward, backward: for each schedule.
    again, last: for each schedule its forward when run again, `last` if no link comes after it.
    recompute: for each schedule the runs that make the next link's input from the values kept.
    """

    first_pass: tuple[int, ...]
    again_pass: tuple[int, ...]
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
    kinds = alike(problem)
    streams = stream_values(problem)
    base, forward_base = _bases(problem, streams)
    links_of_kinds: dict[int, tuple[Runs, Link]] = {}
    for kind in dict.fromkeys(kinds):
        links_of_kinds[kind] = _runs_and_link(problem, middle_member(kinds, kind), kind, schedules[kind], streams)
    size = [value.size_bytes for value in problem.values]
    links = tuple(
        replace(
            links_of_kinds[kind][1],
            input_bytes=sum(size[value] for value in streams[block]),
            base_bytes=base[block],
            forward_base_bytes=forward_base[block],
        )
        for block, kind in enumerate(kinds)
    )
    return Chain(links, tuple(links_of_kinds[kind][0] for kind in kinds))


def _runs_and_link(
    problem: Problem, block: int, kind: int, schedules: Sequence[BlockSchedule], streams: tuple[frozenset[int], ...]
) -> tuple[Runs, Link]:
    """Build the runs and the link of a class of blocks; inputs and bases are left at zero."""
    evaluator, operations, ops = BlockEvaluator(problem, block), operations_of(problem, block), problem.ops
    next_inputs = streams[block + 1] if block + 1 < len(streams) else frozenset()
    forward = problem.segment_operations[block]
    first_pass = _first_pass(problem, forward, evaluator)
    again_pass = trimmed(problem, forward, next_inputs)
    once_seconds = sum(ops[index].seconds for index in operations)

    def seconds(runs: Sequence[int]) -> float:
        return sum(ops[index].seconds for index in runs)

    def positions(runs: Sequence[int]) -> tuple[int, ...]:
        return tuple(evaluator.position[index] for index in runs)

    schedule_runs, link_schedules = [], []
    for schedule in schedules:
        forward_runs = tuple(operations[position] for position in schedule.forward)
        backward_runs = tuple(operations[position] for position in schedule.backward)
        required = evaluator.required_values(backward_runs)
        again = trimmed(problem, forward_runs, required | next_inputs)
        last = trimmed(problem, forward_runs, required)
        recompute = trimmed(problem, forward, next_inputs, required - next_inputs)
        backward_seconds = seconds(backward_runs) - once_seconds
        schedule_runs.append(
            (schedule.forward, positions(again), positions(last), positions(recompute), schedule.backward)
        )
        link_schedules.append(
            LinkSchedule(
                kept_bytes=schedule.kept_bytes,
                backward_peak_bytes=schedule.backward_peak_bytes,
                forward_peak_bytes=schedule.forward_peak_bytes,
                seconds=schedule.seconds,
                again_seconds=repeated_seconds(problem, again) + backward_seconds,
                last_seconds=repeated_seconds(problem, last) + backward_seconds,
                again_peak_bytes=evaluator.forward_peak(again, required & evaluator.local_values),
                last_peak_bytes=evaluator.forward_peak(last, required & evaluator.local_values),
                forward_seconds=seconds(forward_runs),
                forward_again_seconds=repeated_seconds(problem, again),
                recompute_seconds=repeated_seconds(problem, recompute),
                recompute_peak_bytes=evaluator.forward_peak(recompute, frozenset()),
                backward_seconds=backward_seconds,
            )
        )
    runs = Runs(positions(first_pass), positions(again_pass), *zip(*schedule_runs, strict=True))
    link = Link(
        kind,
        tuple(link_schedules),
        0,
        0,
        0,
        seconds(first_pass),
        repeated_seconds(problem, again_pass),
        evaluator.forward_peak(first_pass, frozenset()),
    )
    return runs, link


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
    return sum(problem.ops[index].seconds for index in runs)


def _first_pass(problem: Problem, forward: Sequence[int], evaluator: BlockEvaluator) -> tuple[int, ...]:
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
    """Return the chain after a pass in which link l has kept the values of its schedule chosen[l].

    The bytes kept then belong to the bases. A later pass makes only the values that the next link reads, from those
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
                pass_seconds=schedule.recompute_seconds,
                pass_peak_bytes=schedule.recompute_peak_bytes,
            )
        )
        recompute, backward = link_runs.recompute[number], link_runs.backward[number]
        runs.append(Runs((), recompute, (), (recompute,), ((),), (recompute,), (backward,)))
    return Chain(tuple(links), tuple(runs))


def _bases(problem: Problem, streams: tuple[frozenset[int], ...]) -> tuple[list[int], list[int]]:
    """Return for each block the bytes alive when its backward begins, and when its forward begins.

    Everything is kept; the bytes that schedules keep and the streams do not count. A value that the forward of several
    blocks reads stays until the first of them has run backward, since its forward may run again then.
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
