"""A step as a chain of links: what each keeps, rises to and takes, in every way it can be run."""

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
    """A way to run a link, and what it means to run it again. Bytes as in `Way`.

    seconds: beyond running everything once. again_seconds: the same if the link's forward has passed before, and now
        makes only what this way keeps and what the next link reads; last_seconds: if nothing comes after it either.
        again_height_bytes, last_height_bytes: the highest moment of such a forward above what is alive when it begins.
    forward_seconds, forward_again_seconds: of its forward alone, the first time and another time.
    remake_seconds, remake_height_bytes: of making what the next link reads from the link's input and what this way
        keeps; infinite if that cannot be. backward_seconds: of its backward, beyond running everything once.
    """

    kept_bytes: int
    height_bytes: int
    forward_height_bytes: int
    seconds: float
    again_seconds: float
    last_seconds: float
    again_height_bytes: int
    last_height_bytes: int
    forward_seconds: float
    forward_again_seconds: float
    remake_seconds: float
    remake_height_bytes: int
    backward_seconds: float


@dataclass(frozen=True)
class Link:
    """One block of a chain.

    kind: equal for links that are equal in all but their bases. input_bytes: what the link before makes for it alone,
        which may be dropped and made again. base_bytes: alive when the link's backward begins, whatever is chosen, no
        link's input and nothing kept by a way counted; forward_base_bytes: the same when its forward first begins.
    first_pass_seconds: of running its forward for the first time, keeping nothing; pass_seconds: of doing so again,
        infinite if it cannot be; pass_height_bytes: the highest moment of it above what is alive when it begins.
    """

    kind: int
    ways: tuple[LinkSchedule, ...]
    input_bytes: int
    base_bytes: int
    forward_base_bytes: int
    first_pass_seconds: float
    pass_seconds: float
    pass_height_bytes: int


@dataclass(frozen=True)
class Runs:
    """What a link of a class runs, as positions in its operations.

    first_pass, again_pass: its forward, keeping nothing. For each way: forward, forward again, forward again if
    nothing comes after it, what the next link reads from what is kept, backward.
    """

    first_pass: tuple[int, ...]
    again_pass: tuple[int, ...]
    forward: tuple[tuple[int, ...], ...]
    again: tuple[tuple[int, ...], ...]
    last: tuple[tuple[int, ...], ...]
    remake: tuple[tuple[int, ...], ...]
    backward: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Chain:
    """The links of a problem, and what they run."""

    links: tuple[Link, ...]
    runs: tuple[Runs, ...]


def chain_of(problem: Problem, ways: Mapping[int, Sequence[BlockSchedule]]) -> Chain:
    """The chain of a problem's blocks.

    ways: for each distinct block (`alike`) the ways to run it.
    """
    kinds = alike(problem)
    streams = stream_values(problem)
    base, forward_base = _bases(problem, streams)
    pieces: dict[int, tuple[Runs, Link]] = {}
    for kind in dict.fromkeys(kinds):
        pieces[kind] = _piece(problem, middle_member(kinds, kind), kind, ways[kind], streams)
    size = [value.size_bytes for value in problem.values]
    links = tuple(
        replace(
            pieces[kind][1],
            input_bytes=sum(size[value] for value in streams[block]),
            base_bytes=base[block],
            forward_base_bytes=forward_base[block],
        )
        for block, kind in enumerate(kinds)
    )
    return Chain(links, tuple(pieces[kind][0] for kind in kinds))


def _piece(
    problem: Problem, block: int, kind: int, ways: Sequence[BlockSchedule], streams: tuple[frozenset[int], ...]
) -> tuple[Runs, Link]:
    """What a class of blocks runs and takes; inputs and bases are left at zero."""
    bench, operations, ops = BlockEvaluator(problem, block), operations_of(problem, block), problem.ops
    after = streams[block + 1] if block + 1 < len(streams) else frozenset()
    forward = problem.segment_operations[block]
    first_pass = _first_pass(problem, forward, bench)
    again_pass = trimmed(problem, forward, after)
    once = sum(ops[index].seconds for index in operations)

    def seconds(runs: Sequence[int]) -> float:
        return sum(ops[index].seconds for index in runs)

    def positions(runs: Sequence[int]) -> tuple[int, ...]:
        return tuple(bench.position[index] for index in runs)

    runs_of_ways, of_ways = [], []
    for way in ways:
        way_forward = tuple(operations[position] for position in way.forward)
        way_backward = tuple(operations[position] for position in way.backward)
        wanted = bench.wanted(way_backward)
        again = trimmed(problem, way_forward, wanted | after)
        last = trimmed(problem, way_forward, wanted)
        remake = trimmed(problem, forward, after, wanted - after)
        backward_seconds = seconds(way_backward) - once
        runs_of_ways.append((way.forward, positions(again), positions(last), positions(remake), way.backward))
        of_ways.append(
            LinkSchedule(
                kept_bytes=way.kept_bytes,
                height_bytes=way.height_bytes,
                forward_height_bytes=way.forward_height_bytes,
                seconds=way.seconds,
                again_seconds=repeated_seconds(problem, again) + backward_seconds,
                last_seconds=repeated_seconds(problem, last) + backward_seconds,
                again_height_bytes=bench.forward_peak(again, wanted & bench.loose),
                last_height_bytes=bench.forward_peak(last, wanted & bench.loose),
                forward_seconds=seconds(way_forward),
                forward_again_seconds=repeated_seconds(problem, again),
                remake_seconds=repeated_seconds(problem, remake),
                remake_height_bytes=bench.forward_peak(remake, frozenset()),
                backward_seconds=backward_seconds,
            )
        )
    runs = Runs(positions(first_pass), positions(again_pass), *zip(*runs_of_ways, strict=True))
    link = Link(
        kind,
        tuple(of_ways),
        0,
        0,
        0,
        seconds(first_pass),
        repeated_seconds(problem, again_pass),
        bench.forward_peak(first_pass, frozenset()),
    )
    return runs, link


def trimmed(
    problem: Problem, forward: Sequence[int], wanted: frozenset[int], given: frozenset[int] = frozenset()
) -> tuple[int, ...]:
    """Of these runs the fewest, in order, that make what is wanted from what is given."""
    needed, chosen = set(wanted - given), []
    for index in reversed(forward):
        op = problem.ops[index]
        if any(value in needed for value in op.makes):
            needed.difference_update(op.makes)
            needed.update(value for value in op.reads if value not in given)
            chosen.append(index)
    return tuple(reversed(chosen))


def repeated_seconds(problem: Problem, runs: Sequence[int]) -> float:
    """The time of running these a second time, infinite if one of them cannot be."""
    if not all(problem.ops[index].repeatable for index in runs):
        return inf
    return sum(problem.ops[index].seconds for index in runs)


def _first_pass(problem: Problem, forward: Sequence[int], bench: BlockEvaluator) -> tuple[int, ...]:
    """What of a forward must run before backward begins, whatever is kept: see `Walk.let_forward_wait`."""
    wanted: set[int] = set()
    chosen = []
    for index in reversed(forward):
        op = problem.ops[index]
        outside = any(value not in bench.loose for value in op.makes)
        if not op.repeatable or op.random or not op.makes or outside or wanted.intersection(op.makes):
            chosen.append(index)
            wanted.update(op.reads)
    return tuple(reversed(chosen))


def storing(chain: Chain, chosen: Sequence[int]) -> Chain:
    """The chain after a pass in which link l has kept what its way chosen[l] keeps, which counts to the bases now.

    Passing again makes only what the next link reads from what is kept; the way chosen is the only one left.
    """
    links, runs, stored_bytes = [], [], 0
    for link, of_link, number in zip(chain.links, chain.runs, chosen, strict=True):
        way = link.ways[number]
        stored_bytes += way.kept_bytes
        left = replace(
            way,
            kept_bytes=0,
            height_bytes=way.height_bytes - way.kept_bytes,
            again_height_bytes=way.remake_height_bytes,
            last_height_bytes=0,
            again_seconds=way.remake_seconds + way.backward_seconds,
            last_seconds=way.backward_seconds,
        )
        links.append(
            replace(
                link,
                ways=(left,),
                base_bytes=link.base_bytes + stored_bytes,
                pass_seconds=way.remake_seconds,
                pass_height_bytes=way.remake_height_bytes,
            )
        )
        remake, backward = of_link.remake[number], of_link.backward[number]
        runs.append(Runs((), remake, (), (remake,), ((),), (remake,), (backward,)))
    return Chain(tuple(links), tuple(runs))


def _bases(problem: Problem, streams: tuple[frozenset[int], ...]) -> tuple[list[int], list[int]]:
    """For each block the bytes alive when its backward begins, and when its forward does, with everything kept, less
    what ways keep and less the streams.

    What the forward of several blocks reads stays until the first of them has run backward: it may run again then.
    """
    blocks, turn = len(problem.block_classes), problem.forward_length
    order = problem.segment_operations
    lives, starts = lives_of(problem, order), np.cumsum([0, *(len(segment) for segment in order)])
    shared = shared_values(problem)
    free = frozenset().union(*streams)
    change = np.zeros(len(lives.runs) + 1, dtype=np.int64)
    dies_at = dict(zip(lives.dies.tolist(), lives.dies_at.tolist(), strict=True))
    for value, position in zip(lives.born.tolist(), lives.born_at.tolist(), strict=True):
        in_forward = problem.maker[value] < turn
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
