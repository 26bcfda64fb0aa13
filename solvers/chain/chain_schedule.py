"""From a nesting of a chain's links to a run order, and to words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..blocks.block_schedules import operations_of
from ..problem.liveness import RunOrder
from ..problem.problem import Problem
from ..problem.units import format_keeping
from .chain import Chain
from .tables import Keep, NestedSchedule, Pass, Tables


def order_of(problem: Problem, tables: Tables, nesting: NestedSchedule) -> RunOrder:
    """What the nesting runs in each segment of the problem whose blocks are the links of the tables' chain.

    First forwards run in their own segments, what runs again in the segment of the next backward.
    """
    blocks = len(tables.links)
    segments: list[list[int]] = [[] for _ in range(2 * blocks)]
    operations = [operations_of(problem, block) for block in range(blocks)]
    for link, positions, segment in _steps(tables, nesting):
        segments[segment] += [operations[link][position] for position in positions]
    return tuple(tuple(segment) for segment in segments)


def told(tables: Tables, nesting: NestedSchedule) -> str:
    """How many links keep how much, and which stretches pass more than once."""
    kept: Counter[int] = Counter()
    passes = []
    for part in _parts(nesting):
        if isinstance(part.decision, Keep):
            level = part.level
            link, way = part.decision.link, part.decision.way
            chosen = way if level is None else tables.levels[level][link]
            kept[tables.chain.links[link].ways[chosen].kept_bytes] += 1
        else:
            passes.append(part.decision)
    ways = ", ".join(format_keeping(count, size) for size, count in sorted(kept.items(), reverse=True))
    again = f"; {len(passes)} stretches run again from their first input" if passes else ""
    return f"of {len(tables.links)} links: {ways}{again}"


def _parts(nesting: NestedSchedule) -> Iterator[NestedSchedule]:
    pending = [nesting]
    while pending:
        part = pending.pop()
        yield part
        pending += [one for one in (part.again, part.after) if one is not None]


def _steps(tables: Tables, nesting: NestedSchedule) -> Iterator[tuple[int, Sequence[int], int]]:
    """(link, positions, segment) of everything that runs, in order."""
    end = 2 * len(tables.links) - 1
    pending: list[NestedSchedule | tuple[int, Sequence[int]]] = [nesting]  # nestings, and backwards that are due
    while pending:
        part = pending.pop()
        if isinstance(part, tuple):
            yield *part, end - part[0]
            continue
        chain = tables.chain if part.level is None else tables.stored[part.level].chain
        is_first_forward = part.level is None and part.last == len(tables.links) - 1
        decision = part.decision
        if isinstance(decision, Keep):
            runs = chain.runs[decision.link]
            forward = runs.forward if is_first_forward else runs.last if part.after is None else runs.again
            yield decision.link, forward[decision.way], decision.link if is_first_forward else end - part.last
            pending.append((decision.link, runs.backward[decision.way]))
        else:
            for link in range(decision.first, decision.stop):
                positions = _passed(chain, tables.levels, decision, link, is_first_forward)
                yield link, positions, link if is_first_forward else end - part.last
        pending += [one for one in (part.again, part.after) if one is not None]


def _passed(
    chain: Chain, levels: Sequence[Sequence[int]], decision: Pass, link: int, is_first_forward: bool
) -> Sequence[int]:
    """What a pass runs of a link."""
    runs = chain.runs[link]
    if decision.level is None:
        return runs.first_pass if is_first_forward else runs.again_pass
    way = levels[decision.level][link]
    return runs.forward[way] if is_first_forward else runs.again[way]
