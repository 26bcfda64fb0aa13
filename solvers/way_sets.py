"""For each distinct block of a problem the ways to run it that none other beats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from .block_options import BlockBench, by_hand, members_of, options_of
from .blocks import alike
from .disk_cache import DiskCache
from .ilp_block_program import WayProgram
from .integer_program import Effort
from .levels import lower_hull
from .problem import Problem
from .way_cache import cached_ways
from .ways import Way, WayBench

_WORTH_PROVING = 4  # equal blocks for which an integer program is worth its time
_FEW_OPERATIONS = 30  # of forward that it takes on
_MOST_PROOFS = 4  # for one kind of block
_NODES = 5  # of branch and bound for each


def way_sets(problem: Problem, visits: int, cache: DiskCache | None = None) -> Mapping[int, tuple[Way, ...]]:
    """By the first of equal blocks (`alike`) their ways, from the most bytes kept to the fewest.

    visits: limits the work, in operations looked at (a million takes about half a second). cache: where they are
    kept by what is in a block, so that models of other depths find those of equal layers.
    """
    kinds = alike(problem)
    each = visits // len(set(kinds))
    found = {}
    for kind in dict.fromkeys(kinds):
        block = middle_member(kinds, kind)
        find = partial(_found, problem, block, each)
        found[kind] = cached_ways(problem, block, f"{each} visits, {members_of(problem, block)} members", find, cache)
    return found


def recipe_ways(problem: Problem) -> Mapping[int, tuple[Way, ...]]:
    """The same with only what is done by hand: keep everything, or what intensive operations make, or nothing."""
    kinds = alike(problem)
    found = {}
    for kind in dict.fromkeys(kinds):
        block = middle_member(kinds, kind)
        bench, walked = WayBench(problem, block), BlockBench(problem, block)
        lifetimes = (bytes(len(walked.values)), *by_hand(walked))
        found[kind] = unbeaten(bench.weigh(*walked.runs_of(told)) for told in lifetimes)
    return found


def middle_member(kinds: tuple[int, ...], kind: int) -> int:
    """The block that stands for its kind: the first and the last may see unusual neighbours."""
    members = [block for block, other in enumerate(kinds) if other == kind]
    return members[len(members) // 2]


def unbeaten(ways: Iterable[Way]) -> tuple[Way, ...]:
    """Those that no other is as good as in everything, from the most bytes kept to the fewest."""
    order = sorted(ways, key=lambda w: (w.seconds, w.kept_bytes, w.height_bytes, w.forward, w.backward))
    columns = np.array([(way.kept_bytes, way.height_bytes, way.forward_height_bytes) for way in order])
    best: list[int] = []
    for number in range(len(order)):
        # what comes before is as fast
        if not np.any(np.all(columns[best] <= columns[number], axis=1)):
            best.append(number)
    return tuple(sorted((order[i] for i in best), key=lambda way: (-way.kept_bytes, way.seconds)))


def _found(problem: Problem, block: int, visits: int) -> tuple[Way, ...]:
    ways = unbeaten(_from_options(problem, block, visits))
    repeats = members_of(problem, block) >= _WORTH_PROVING
    few = len(problem.segment_operations[block]) <= _FEW_OPERATIONS
    return unbeaten([*ways, *_proven(problem, block, ways)]) if repeats and few else ways


def _proven(problem: Problem, block: int, ways: Sequence[Way]) -> Iterator[Way]:
    """Faster ways that keep no more and rise no higher than some of these, by integer programming.

    Minimum cuts have found the best ways for what they keep, however high they rise: tried are ways beside the lower
    convex hull of (bytes kept, seconds), spread evenly from the most bytes kept to the fewest.
    """
    hull = {number for _, _, number in lower_hull((w.kept_bytes, w.seconds, n) for n, w in enumerate(ways))}
    worth = [way for number, way in enumerate(ways) if number not in hull and way.seconds > 0]
    if not worth:
        return
    program = WayProgram(problem, block)
    for way in worth[:: -(-len(worth) // _MOST_PROOFS)]:
        faster = program.fastest(way.kept_bytes, way.height_bytes, way, Effort(_NODES)).way
        if faster is not None:
            yield faster


def _from_options(problem: Problem, block: int, visits: int) -> list[Way]:
    """The ways that minimum cuts and single changes find."""
    bench, walked = WayBench(problem, block), BlockBench(problem, block)
    return [bench.weigh(*walked.runs_of(option.lifetimes)) for option in options_of(problem, block, visits)]
