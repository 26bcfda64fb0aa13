"""Rockmate's way: the best ways to run each kind of layer, then the dynamic program over the chain of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .chain import chain_of
from .dp import Tables
from .envelope import cheapest_under
from .layers import in_blocks
from .levels import levels_of
from .liveness import Candidate, forecast, schedule_of
from .nestings import order_of, told
from .partitions import partitions
from .problem import Problem
from .schedule import Schedule
from .simulate import baseline_of
from .way_sets import way_sets

_FINER = 4  # the next tables reach only so far, in slots as much finer
_LEAST_REACH = 0.02  # of the peak with everything kept


@dataclass(frozen=True)
class Hierarchical:
    """Ways per kind of layer, then the best nesting of layers for every budget (Zhao et al. 2023, ICML, Rockmate).

    The step is cut into layers, into parts of layers, and into windows of large blocks (`partitions`). For each cut the
    ways to run each kind of link are found (`way_sets`), then the tables of the dynamic program (`Tables`), once over
    the whole range of budgets and again over lower and lower parts of it in finer slots. Wherever more bytes make the
    whole chain faster there is a rung; `rungs` limits how many of them are told, evenly spread over bytes and seconds.
    A rung that promises no more than what has been told already is left out: the tables predict seconds exactly, and
    peaks up to the rounding to slots.

    What several links read besides their neighbour's output (masks, skips, an encoder's output) is kept.

    Guarantee: among nestings of these ways the best, but for the rounding; compare `lower_bound_seconds`. Cost: that of
    the ways per kind, the tables' (`Tables`), and one run order per rung.
    """

    slots: int = 2000
    levels: int = 6
    rungs: int = 128
    visits: int = 4_000_000
    name: str = "hierarchical"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """The rungs of every cut, those of the coarsest first, from the fewest bytes up."""
        known: list[tuple[int, float]] = []
        for cut in partitions(problem):
            for tables in self._tables(cut):
                for budget_bytes, seconds in self._rungs(tables):
                    if any(peak <= budget_bytes and least <= problem.seconds + seconds for peak, least in known):
                        continue
                    nesting = tables.nesting(budget_bytes)
                    assert nesting is not None
                    order = in_blocks(problem, order_of(cut, tables, nesting))
                    seen = forecast(problem, order)
                    known.append((seen.peak_bytes, seen.seconds))
                    yield Candidate(told(tables, nesting), order, seen)

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest rung that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)

    def _tables(self, cut: Problem) -> Iterator[Tables]:
        """Tables over less and less of the range of budgets, in finer and finer slots."""
        chain = chain_of(cut, way_sets(cut, self.visits))
        levels = levels_of(chain, self.levels)
        highest = baseline_of(cut).peak_bytes
        reach = highest - chain.links[-1].base_bytes
        while reach > _LEAST_REACH * highest:
            yield Tables(chain, max(reach / self.slots, 1.0), self.slots, levels)
            reach /= _FINER

    def _rungs(self, tables: Tables) -> Iterator[tuple[float, float]]:
        """(budget in bytes, extra seconds) of the steps to be told."""
        steps = tables.steps()
        if not steps:
            return
        (least_bytes, most_seconds), (most_bytes, least_seconds) = steps[0], steps[-1]
        apart_bytes = (most_bytes - least_bytes) / self.rungs
        apart_seconds = (most_seconds - least_seconds) / self.rungs
        last = steps[0]
        for step in steps:
            far = step[0] - last[0] >= apart_bytes or last[1] - step[1] >= apart_seconds
            if far or step in (steps[0], steps[-1]):
                last = step
                yield step
