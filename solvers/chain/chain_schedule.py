"""Turns a nested schedule of a chain's links into a run order, and describes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..blocks.block_schedules import operations_of
from ..problem.liveness import RunOrder
from ..problem.problem import Problem
from ..problem.units import format_keeping
from .chain import Chain
from .dynamic_program import ForwardSweep, Keep, NestedSchedule, Tables


def order_of(problem: Problem, tables: Tables, nested_schedule: NestedSchedule) -> RunOrder:
    """Return the run order of a nested schedule; the problem's blocks are the links of the tables' chain.

    First forwards run in their own segments, recomputed operations in the segment of the next backward.
    """
    blocks = len(tables.links)
    segments: list[list[int]] = [[] for _ in range(2 * blocks)]
    operations = [operations_of(problem, block) for block in range(blocks)]
    for link, positions, segment in _steps(tables, nested_schedule):
        segments[segment] += [operations[link][position] for position in positions]
    return tuple(tuple(segment) for segment in segments)


def describe(tables: Tables, nested_schedule: NestedSchedule) -> str:
    """Describe how many links keep how much, and how many stretches are recomputed from their first input."""
    kept: Counter[int] = Counter()
    sweeps = []
    for part in _parts(nested_schedule):
        if isinstance(part.decision, Keep):
            level = part.level
            link, schedule = part.decision.link, part.decision.schedule
            chosen = schedule if level is None else tables.levels[level][link]
            kept[tables.chain.links[link].schedules[chosen].kept_bytes] += 1
        else:
            sweeps.append(part.decision)
    amounts = ", ".join(format_keeping(count, size) for size, count in sorted(kept.items(), reverse=True))
    again = f"; {len(sweeps)} stretches recomputed from their first input" if sweeps else ""
    return f"of {len(tables.links)} links: {amounts}{again}"


def _parts(nested_schedule: NestedSchedule) -> Iterator[NestedSchedule]:
    pending = [nested_schedule]
    while pending:
        part = pending.pop()
        yield part
        pending += [child for child in (part.again, part.after) if child is not None]


def _steps(tables: Tables, nested_schedule: NestedSchedule) -> Iterator[tuple[int, Sequence[int], int]]:
    """Yield (link, positions, segment) of all that runs, in order."""
    end = 2 * len(tables.links) - 1
    pending: list[NestedSchedule | tuple[int, Sequence[int]]] = [nested_schedule]  # also backwards that are due
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
            yield decision.link, forward[decision.schedule], decision.link if is_first_forward else end - part.last
            pending.append((decision.link, runs.backward[decision.schedule]))
        else:
            for link in range(decision.first, decision.stop):
                positions = _sweep_positions(chain, tables.levels, decision, link, is_first_forward)
                yield link, positions, link if is_first_forward else end - part.last
        pending += [child for child in (part.again, part.after) if child is not None]


def _sweep_positions(
    chain: Chain, levels: Sequence[Sequence[int]], decision: ForwardSweep, link: int, is_first_forward: bool
) -> Sequence[int]:
    """Return the positions of a link's operations that a sweep runs."""
    runs = chain.runs[link]
    if decision.level is None:
        return runs.first_sweep if is_first_forward else runs.again_sweep
    schedule = levels[decision.level][link]
    return runs.forward[schedule] if is_first_forward else runs.again[schedule]
