"""Rockmate's way: the best ways to run each kind of layer, then the dynamic program over the chain of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .blocks.cuts import chains
from .chain.link_schedules import link_schedules
from .disk_cache import DiskCache
from .dp import Dp
from .pareto import cheapest_under
from .problem.liveness import Candidate, schedule_of
from .problem.problem import Problem
from .problem.schedule import Schedule


@dataclass(frozen=True)
class Hierarchical:
    """Ways per kind of layer, then the best nesting of layers for every budget (Zhao et al. 2023, arXiv 2307.01236).

    The step is cut into layers, and again into parts of layers; where there is no chain of narrow blocks, into windows,
    whose far-reaching values are kept (`chains`). For each cut the ways to run each kind of link are found
    (`link_schedules`), then nested by the dynamic program `dp`.

    cache: where the ways of each kind of block are kept for other models; None to find them anew.

    Guarantee: among nestings of these ways the best, but for the rounding; compare `lower_bound_seconds`. Cost: that of
    the ways per kind of link (`visits` operations looked at), and that of `dp` for each cut.
    """

    dp: Dp = field(default_factory=Dp)
    visits: int = 4_000_000
    name: str = "hierarchical"
    cache: DiskCache | None = field(default=None, repr=False, compare=False)

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """The rungs of every cut, those of the coarsest first, from the fewest bytes up."""
        for cut in chains(problem):
            yield from self.dp.candidates_of(problem, cut, link_schedules(cut, self.visits, self.cache))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest rung that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)
