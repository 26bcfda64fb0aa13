"""Rotor's way: the dynamic program over the chain of layers, each kept whole, selectively or by its input alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .blocks.block_schedules import BlockSchedule
from .blocks.layers import in_blocks, in_layers
from .chain.chain import Chain, chain_of
from .chain.chain_schedule import order_of, told
from .chain.link_schedules import recipe_schedules
from .chain.retention_levels import levels_of
from .chain.tables import Tables, decisions_of
from .pareto import cheapest_under
from .polish import polished
from .problem.liveness import Candidate, RunOrder, forecast, schedule_of
from .problem.problem import Problem
from .problem.schedule import Schedule

_FINER = 4  # the next tables reach only so far, in slots as much finer
_LEAST_REACH = 0.02  # of what is above the base of the last link
_TOLD_OPERATIONS = 250_000  # of all rungs of one table together, but at least so many rungs are told:
_FEWEST_RUNGS = 24
_WORK = 600_000_000  # decisions times slots of one table: a few seconds
_FEWEST_SLOTS = 250


@dataclass(frozen=True)
class Dp:
    """The best nesting of layers for every budget (Beaumont et al. 2019, arXiv 1911.13214), with a few ways per layer.

    A layer may keep everything, what its matrix products, convolutions and attention make, or its input alone.

    The tables (`Tables`) are filled once over the whole range of budgets, and again over lower and lower parts of it in
    finer slots. Wherever more bytes make the whole chain faster there is a rung; `rungs` limits how many of each table
    are told, evenly spread over bytes and seconds. A rung that promises no more than what has been told already is left
    out: the tables predict seconds exactly, and peaks up to the rounding to slots.

    Bytes that a rung leaves unused are then spent on single values (`polished`).

    What several layers read besides their neighbour's output (masks, skips, an encoder's output) is kept.

    Guarantee: the best among nestings of these ways, but for the rounding. Cost: that of the tables, and one run order
    per rung.
    """

    slots: int = 2000
    levels: int = 6
    rungs: int = 120
    name: str = "dp"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """The rungs, from the fewest bytes up."""
        layers = in_layers(problem)
        yield from self.candidates_of(problem, layers, recipe_schedules(layers))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest rung that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)

    def candidates_of(
        self, problem: Problem, cut: Problem, ways: Mapping[int, Sequence[BlockSchedule]]
    ) -> Iterator[Candidate]:
        """The rungs for one cut of a problem into links, with ways for each kind of link."""
        chain = chain_of(cut, ways)
        levels, slots = self._affordable(chain)
        # each link's bytes are rounded to slots by itself, so that many of them may need a few slots more
        whole = max(_keeping_bytes(chain), 1.0) * slots / max(slots - len(chain.links) - 1, 1)
        known: list[tuple[float, float]] = []  # (budget in bytes, extra seconds) of the rungs told
        reach = float(whole)
        while reach > _LEAST_REACH * whole:
            tables = Tables(chain, max(reach / slots, 1.0), slots, levels)
            steps = list(self._steps(tables, len(cut.ops)))
            for step, following in zip(steps, [*steps[1:], *steps[-1:]], strict=True):
                if any(peak <= step[0] and least <= step[1] for peak, least in known):
                    continue
                known.append(step)
                yield from _candidates(problem, cut, tables, step[0], following[0])
            reach /= _FINER

    def _affordable(self, chain: Chain) -> tuple[tuple[tuple[int, ...], ...], int]:
        """Levels and slots with which tables take seconds: fewer for chains of many links that are all different."""
        decisions = decisions_of(chain)
        for most in (self.levels, self.levels // 3):
            levels = levels_of(chain, most)
            if decisions * (1 + 2 * len(levels)) * self.slots <= _WORK:
                return levels, self.slots
        if decisions * (1 + 2 * len(levels)) * _FEWEST_SLOTS > _WORK:
            levels = ()
        return levels, min(max(_WORK // (decisions * (1 + 2 * len(levels))), _FEWEST_SLOTS), self.slots)

    def _steps(self, tables: Tables, operations: int) -> Iterator[tuple[float, float]]:
        """(budget in bytes, extra seconds) of the steps to be told."""
        steps = tables.steps()
        if not steps:
            return
        rungs = min(self.rungs, max(_FEWEST_RUNGS, _TOLD_OPERATIONS // operations))
        (least_bytes, most_seconds), (most_bytes, least_seconds) = steps[0], steps[-1]
        apart_bytes = (most_bytes - least_bytes) / rungs
        apart_seconds = (most_seconds - least_seconds) / rungs
        last = steps[0]
        for step in steps:
            far = step[0] - last[0] >= apart_bytes or last[1] - step[1] >= apart_seconds
            if far or step in (steps[0], steps[-1]):
                last = step
                yield step


def _keeping_bytes(chain: Chain) -> float:
    """What the chain needs above the base of its last link with every link in its fastest way."""
    end_bytes = chain.links[-1].base_bytes
    kept_bytes = most_bytes = 0
    for link, following in zip(chain.links, [*chain.links[1:], None], strict=True):
        way = min(link.ways, key=lambda one: (one.seconds, one.height_bytes))
        forward_bytes = link.forward_base_bytes + way.forward_height_bytes
        most_bytes = max(most_bytes, kept_bytes + max(link.base_bytes + way.height_bytes, forward_bytes) - end_bytes)
        kept_bytes += way.kept_bytes + (following.input_bytes if following else 0)
    return most_bytes


def _candidates(
    problem: Problem, cut: Problem, tables: Tables, budget_bytes: float, next_bytes: float
) -> Iterator[Candidate]:
    """The nesting for a budget, polished within its own peak, and also up to the budget of the next rung."""
    nesting = tables.nesting(budget_bytes)
    assert nesting is not None
    order = in_blocks(problem, order_of(cut, tables, nesting))
    peak_bytes = forecast(problem, order).peak_bytes
    offered: list[RunOrder] = []
    for limit in sorted({peak_bytes, max(int(next_bytes) - 1, peak_bytes)}):
        better = polished(problem, order, limit)
        if better not in offered:
            offered.append(better)
            words = told(tables, nesting) + ("" if better is order else "; polished")
            yield Candidate(words, better, forecast(problem, better))
