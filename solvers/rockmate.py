"""Rockmate's approach: the best schedules of each kind of layer, then the dynamic program over the chain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Self

from .blocks.cuts import chains
from .candidates.pareto import cheapest_under
from .chain.link_schedules import link_schedules
from .disk_cache import DiskCache
from .problem.liveness import Candidate, schedule_of
from .problem.problem import Problem
from .problem.schedule import Schedule
from .rotor import Rotor
from .solver import Solver

# Divisors of the work of the thinned solver, which finds as much.
_FEWER_CANDIDATES = 2
_FEWER_VISITS = 8


@dataclass(frozen=True)
class Rockmate(Solver):
    """Find schedules per kind of layer, then the best nested schedule (Zhao et al. 2023, arXiv 2307.01236).

    The step is cut into layers, and again into parts of layers (`chains`). Where there is no chain of narrow blocks, it
    is cut into windows, whose far-reaching values are kept. For each cut the schedules of each kind of link are found
    (`link_schedules`), then nested by the dynamic program `rotor`.

    rotor: the dynamic program.
    visits: operations looked at for the schedules of links.
    cache: the folder that shares the schedules of each kind of block with other models; None to compute them.

    Guarantee: the best among nested schedules of these schedules, except for the rounding; compare
    `lower_bound_seconds`. Cost: `visits`, and that of `rotor` for each cut.
    """

    is_slow = True
    rotor: Rotor = field(default_factory=Rotor)
    visits: int = 4_000_000
    name: str = "rockmate"
    cache: DiskCache | None = field(default=None, repr=False, compare=False)

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """Yield the candidates of every cut, those of the coarsest first, from the fewest bytes up."""
        for cut in chains(problem):
            yield from self.rotor.candidates_of(problem, cut, link_schedules(cut, self.visits, self.cache))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """Return the fastest candidate that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)

    def with_cache(self, cache: DiskCache | None) -> Self:
        """Return the solver that shares the schedules of blocks in this folder."""
        return replace(self, cache=cache)

    def thinned(self) -> Self:
        """Return the solver with fewer candidates and visits."""
        rotor = replace(self.rotor, most_candidates=max(self.rotor.most_candidates // _FEWER_CANDIDATES, 1))
        return replace(self, rotor=rotor, visits=self.visits // _FEWER_VISITS)
