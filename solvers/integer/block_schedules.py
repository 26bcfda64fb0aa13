"""Ways to run a layer by integer programming: the fastest one under limits, and those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from ..blocks.block_schedules import BlockSchedule, unbeaten
from ..problem.problem import Problem
from .answer import Effort
from .block_program import BlockProgram, Proven
from .block_stages import stages_of_block
from .stages import choices

# Limits to try, what promises most first: shares of the most bytes kept, then the place among known heights.
_LADDER = (
    *((0.1, 0.3), (0.4, 0.0), (0.1, 0.0), (0.4, 0.3), (0.1, 0.6), (0.75, 0.3), (0.75, 0.0), (0.4, 0.6)),
    *((0.0, 0.3), (0.0, 0.0), (0.0, 0.6), (0.1, 0.1), (0.4, 0.1), (0.75, 0.6), (0.25, 0.3), (0.25, 0.0)),
)
_WORK = 12_000_000_000  # choices cubed, times limits: a second or two
_GAP = 0.005  # of the time of the layer's forward, as far as measured times can tell ways apart


def fastest_schedule(
    problem: Problem,
    block: int,
    kept_bytes: int,
    height_bytes: int,
    start: BlockSchedule | None = None,
    node_limit: int = 10_000,
) -> Proven:
    """The way to run a block that takes least time with `Way.kept_bytes` and `Way.height_bytes` limited (bytes).

    start: a way to begin with. node_limit: nodes of branch and bound, after which the best way so far is returned
    with what is proven by then; 0 looks near the relaxation only.
    """
    return BlockProgram(problem, block).fastest(kept_bytes, height_bytes, start, Effort(node_limit))


def ways_of(
    problem: Problem, block: int, known: Sequence[BlockSchedule], work: int = _WORK
) -> tuple[BlockSchedule, ...]:
    """Ways to run a block, those of `known` among them, none beaten by another in everything.

    Fast ways for limits on kept bytes and height, from a fixed ladder between those of known ways; of these only as
    many as `work` allows, none for blocks so large that one takes more. Each begins with the best way found so far,
    and is left as it is where the relaxation proves that little is to be gained. A pair of limits is skipped where
    what was found for wider ones answers it.
    """
    cut = stages_of_block(problem, block).stages
    limits = _limits(known)[: work // max(choices(cut), 1) ** 3]
    if not limits:
        return unbeaten(known)
    program = BlockProgram(problem, block)
    gap = _GAP * sum(problem.ops[index].seconds for index in program.block.forward)
    found = list(known)
    answers: list[tuple[int, int, Proven]] = []
    for kept_bytes, height_bytes in limits:
        if any(_answers(*answer, kept_bytes, height_bytes) for answer in answers):
            continue
        fitting = [way for way in found if way.kept_bytes <= kept_bytes and way.height_bytes <= height_bytes]
        start = min(fitting, key=lambda way: way.seconds, default=None)
        proven = program.fastest(kept_bytes, height_bytes, start, Effort(node_limit=0, gap=gap))
        answers.append((kept_bytes, height_bytes, proven))
        if proven.way is not None:
            found.append(proven.way)
    return unbeaten(found)


def _limits(known: Sequence[BlockSchedule]) -> list[tuple[int, int]]:
    """Pairs of limits on kept bytes and height."""
    if not known:
        return []
    most = max(way.kept_bytes for way in known)
    heights = sorted({way.height_bytes for way in known})
    pairs = [(int(most * share), heights[int((len(heights) - 1) * place)]) for share, place in _LADDER]
    return list(dict.fromkeys(pairs))


def _answers(kept_limit: int, height_limit: int, proven: Proven, kept_bytes: int, height_bytes: int) -> bool:
    """Whether what is proven for wider limits answers for these ones."""
    if kept_bytes > kept_limit or height_bytes > height_limit:
        return False
    way = proven.way
    if way is None:
        return proven.least_seconds == inf
    return way.kept_bytes <= kept_bytes and way.height_bytes <= height_bytes
