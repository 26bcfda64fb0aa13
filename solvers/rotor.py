"""Rotor's dynamic program over the chain of layers, each kept whole, selectively or by its input alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .blocks.block_schedules import BlockSchedule
from .blocks.layers import in_blocks, in_layers
from .candidates.pareto import cheapest_under
from .chain.chain import Chain, chain_of
from .chain.chain_schedule import describe, order_of
from .chain.dynamic_program import Tables, decisions_of
from .chain.link_schedules import recipe_schedules
from .chain.retention_levels import levels_of
from .polish import polished
from .problem.liveness import Candidate, RunOrder, forecast, schedule_of
from .problem.problem import Problem
from .problem.schedule import Schedule
from .solver import Solver

_FINER = 4  # factor by which the next tables have finer slots and a smaller range
_LEAST_REACH = 0.02  # share of the bytes above the base of the last link
_MOST_OPERATIONS = 250_000  # limit for all candidates of one table together
_FEWEST_CANDIDATES = 24  # of one table, even beyond that limit
_MOST_WORK = 600_000_000  # decisions times slots of one table: a few seconds
_FEWEST_SLOTS = 250


@dataclass(frozen=True)
class Rotor(Solver):
    """Find the best nested schedule of layers for every budget (Beaumont et al. 2019, arXiv 1911.13214).

    A layer may keep everything, the results of its matrix products, convolutions and attention,
    or its input alone.

    The tables (`Tables`) are filled once over the whole range of budgets, and again over lower and lower parts of it in
    finer slots. Wherever more bytes make the whole chain faster there is a candidate, up to `most_candidates` of each
    table, evenly spread over bytes and seconds. A candidate that promises no improvement over earlier ones is left out.
    The tables predict seconds exactly, and peaks up to the rounding to slots.

    Bytes that a candidate leaves unused are then spent on single values (`polished`).

    Values that several layers read in addition to their neighbour's output are kept: masks, skips, an encoder's output.

    slots: budgets per table.
    levels: at most this many retention levels (`levels_of`).
    most_candidates: of each table.

    Guarantee: the best among nested schedules of these schedules, except for the rounding. Cost: the tables, and one
    run order per candidate.
    """

    slots: int = 2000
    levels: int = 6
    most_candidates: int = 120
    name: str = "rotor"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """Yield the candidates of each table, from the fewest bytes up."""
        layers = in_layers(problem)
        yield from self.candidates_of(problem, layers, recipe_schedules(layers))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """Return the fastest candidate that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)

    def candidates_of(
        self, problem: Problem, cut: Problem, schedules: Mapping[int, Sequence[BlockSchedule]]
    ) -> Iterator[Candidate]:
        """Yield the candidates for one cut of a problem into links, given the schedules of each kind of link."""
        chain = chain_of(cut, schedules)
        levels, slots = self._affordable(chain)
        # the bytes of each link are rounded to slots separately, so that many links may need a few more slots
        whole = max(_keeping_bytes(chain), 1.0) * slots / max(slots - len(chain.links) - 1, 1)
        known: list[tuple[float, float]] = []  # (budget in bytes, extra seconds) of the candidates yielded
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
        """Return levels and slots with which tables take seconds: fewer for chains of many different links."""
        decisions = decisions_of(chain)
        for most in (self.levels, self.levels // 3):
            levels = levels_of(chain, most)
            if decisions * (1 + 2 * len(levels)) * self.slots <= _MOST_WORK:
                return levels, self.slots
        if decisions * (1 + 2 * len(levels)) * _FEWEST_SLOTS > _MOST_WORK:
            levels = ()
        return levels, min(max(_MOST_WORK // (decisions * (1 + 2 * len(levels))), _FEWEST_SLOTS), self.slots)

    def _steps(self, tables: Tables, operations: int) -> Iterator[tuple[float, float]]:
        """Yield (budget in bytes, extra seconds) of the steps that become candidates."""
        steps = tables.steps()
        if not steps:
            return
        count = min(self.most_candidates, max(_FEWEST_CANDIDATES, _MOST_OPERATIONS // operations))
        (least_bytes, most_seconds), (most_bytes, least_seconds) = steps[0], steps[-1]
        spacing_bytes = (most_bytes - least_bytes) / count
        spacing_seconds = (most_seconds - least_seconds) / count
        last = steps[0]
        for step in steps:
            is_far = step[0] - last[0] >= spacing_bytes or last[1] - step[1] >= spacing_seconds
            if is_far or step in (steps[0], steps[-1]):
                last = step
                yield step


def _keeping_bytes(chain: Chain) -> float:
    """Return the bytes above the base of the last link that the chain needs if every link has its fastest schedule."""
    end_bytes = chain.links[-1].base_bytes
    kept_bytes = most_bytes = 0
    for link, following in zip(chain.links, [*chain.links[1:], None], strict=True):
        fastest = min(link.schedules, key=lambda schedule: (schedule.seconds, schedule.backward_peak_bytes))
        forward_bytes = link.forward_base_bytes + fastest.forward_peak_bytes
        most_bytes = max(
            most_bytes, kept_bytes + max(link.base_bytes + fastest.backward_peak_bytes, forward_bytes) - end_bytes
        )
        kept_bytes += fastest.kept_bytes + (following.input_bytes if following else 0)
    return most_bytes


def _candidates(
    problem: Problem, cut: Problem, tables: Tables, budget_bytes: float, next_bytes: float
) -> Iterator[Candidate]:
    """Yield the nested schedule for a budget, polished within its own peak and up to the next candidate's budget."""
    nested = tables.nested_schedule(budget_bytes)
    assert nested is not None
    order = in_blocks(problem, order_of(cut, tables, nested))
    peak_bytes = forecast(problem, order).peak_bytes
    orders: list[RunOrder] = []
    for limit in sorted({peak_bytes, max(int(next_bytes) - 1, peak_bytes)}):
        improved = polished(problem, order, limit)
        if improved not in orders:
            orders.append(improved)
            description = describe(tables, nested) + ("" if improved is order else "; polished")
            yield Candidate(description, improved, forecast(problem, improved))
