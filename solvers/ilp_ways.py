"""Ways to run a layer by integer programming: the fastest one under limits, and those that no other beats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf

from .ilp_block_program import Proven, WayProgram
from .integer_program import Effort
from .problem import Problem
from .ways import Way

_LEVELS = 5  # limits on kept bytes, and on heights for each of them


def fastest_way(
    problem: Problem,
    block: int,
    kept_bytes: int,
    height_bytes: int,
    start: Way | None = None,
    node_limit: int = 10_000,
) -> Proven:
    """The way to run a block that takes least time with `Way.kept_bytes` and `Way.height_bytes` limited (bytes).

    start: a way to begin with. node_limit: nodes of branch and bound, after which the best way so far is returned
    with what is proven by then.
    """
    return WayProgram(problem, block).fastest(kept_bytes, height_bytes, start, Effort(node_limit))


def ways_of(problem: Problem, block: int, known: Sequence[Way], node_limit: int = 20) -> tuple[Way, ...]:
    """Ways to run a block, none beaten by another in kept bytes, height and seconds, none of `known` lost.

    The fastest ways for a fixed ladder of limits on kept bytes and height. A pair of limits is skipped where its
    answer is known: where a way found for wider limits fits it.
    """
    if not known:
        return ()
    program = WayProgram(problem, block)
    found = list(known)
    answers: list[tuple[int, int, Proven]] = []
    for kept_bytes in _levels(way.kept_bytes for way in known):
        for height_bytes in _levels(way.height_bytes for way in known):
            if not any(_covers(*answer, kept_bytes, height_bytes) for answer in answers):
                fitting = [way for way in found if way.kept_bytes <= kept_bytes and way.height_bytes <= height_bytes]
                start = min(fitting, key=lambda way: way.seconds, default=None)
                proven = program.fastest(kept_bytes, height_bytes, start, Effort(node_limit))
                answers.append((kept_bytes, height_bytes, proven))
                if proven.way is not None:
                    found.append(proven.way)
    return unbeaten(found)


def _covers(kept_limit: int, height_limit: int, proven: Proven, kept_bytes: int, height_bytes: int) -> bool:
    """Whether what is proven for wider limits answers for these ones."""
    if kept_bytes > kept_limit or height_bytes > height_limit:
        return False
    way = proven.way
    if way is None:
        return proven.least_seconds == inf
    return way.kept_bytes <= kept_bytes and way.height_bytes <= height_bytes


def _levels(values: Iterable[int]) -> list[int]:
    """A few values from the largest to the smallest."""
    distinct = sorted(set(values), reverse=True)
    return list(dict.fromkeys(distinct[round(i * (len(distinct) - 1) / _LEVELS)] for i in range(_LEVELS + 1)))


def unbeaten(ways: Iterable[Way]) -> tuple[Way, ...]:
    """Those that no other is as good as in kept bytes, height and seconds, from the most bytes kept to the fewest."""
    best: list[Way] = []
    for way in sorted(ways, key=lambda way: (way.seconds, way.kept_bytes, way.height_bytes)):
        # what comes before is as fast
        if not any(one.kept_bytes <= way.kept_bytes and one.height_bytes <= way.height_bytes for one in best):
            best.append(way)
    return tuple(sorted(best, key=lambda way: (-way.kept_bytes, way.seconds)))
