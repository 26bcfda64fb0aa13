"""Searches an integer program over stages: the relaxation, solutions near it, then the whole program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Generic, TypeVar

import pulp

from .ancestry_cuts import Ancestry
from .answer import Answer, Effort, Status
from .memory_rows import Moments
from .stage_program import StageProgram

Decoded = TypeVar("Decoded")

_NEARBY = Effort(node_limit=200)
_WHOLE = 1e-6
_SAME = 0.1  # a variable is fixed to an incumbent's value if the relaxed value is this close
_TRIES = 3
_MOST_FREE = 300  # choices left in a program near the relaxation: it takes about half a second


@dataclass(frozen=True, eq=False)
class Solution(Generic[Decoded]):
    """A decoded solution.

    decoded: the schedule or runs that it describes.
    objective: of the program.
    fits: whether it is within all limits.
    high: the stages within which it rises above the limit.
    """

    decoded: Decoded
    objective: float
    fits: bool = True
    high: frozenset[int] = frozenset()


class Search(Generic[Decoded]):
    """Finds the best solution under the present limits of the program.

    decode: turns an answer into a solution.
    values_of: returns the values that describe a decoded solution, None if the program cannot describe it.
    """

    def __init__(
        self,
        core: StageProgram,
        moments: Moments,
        decode: Callable[[Answer], Solution[Decoded]],
        values_of: Callable[[Decoded], Mapping[str, float] | None],
    ) -> None:
        self.core, self.moments, self.ancestry = core, moments, Ancestry(core)
        self.decode, self.values_of = decode, values_of
        self.incumbent: Solution[Decoded] | None = None
        self.solves = self.nodes = 0

    def best(self, start: Solution[Decoded] | None, effort: Effort) -> tuple[Solution[Decoded] | None, float]:
        """Return (the best solution or None, a proven bound on the objective, infinite if there is no solution).

        The relaxation with rows of `Ancestry` comes close to the best solution. Programs with few choices left find
        good solutions near it (Berthold 2014, relaxation enforced neighbourhood search; Danna et al. 2005, relaxation
        induced). Then, unless `effort.node_limit` is 0, the whole program is searched. Once a solution rises above
        the limit within a stage, the inner moments of that stage are stated and the search restarts. This ends since
        the number of stages is finite.
        """
        self.incumbent = start
        least = self._attempt(effort)
        while least is None:
            least = self._attempt(effort)
        return self.incumbent, least if self.incumbent is None else min(least, self.incumbent.objective)

    def _attempt(self, effort: Effort) -> float | None:
        """Return the bound proven while searching; None if rows were added and the search must restart."""
        least = -inf
        for answer in self._answers(effort):
            least = max(least, answer.bound)
            if answer.solved:
                solution = self.decode(answer)
                if self.incumbent is None or solution.objective < self.incumbent.objective:
                    if solution.fits:
                        self.incumbent = solution
                    elif self._state_more(solution.high):
                        return None
            if self.incumbent is not None and self.incumbent.objective - least <= effort.gap:
                break
        return least

    def _answers(self, effort: Effort) -> Iterator[Answer]:
        """Yield answers of one program after another, without the relaxation's values and without bounds near it."""
        relaxed = self.ancestry.strengthen()
        if relaxed is not None:
            yield relaxed if relaxed.status is Status.INFEASIBLE else replace(relaxed, status=Status.UNKNOWN)
            if relaxed.status is Status.INFEASIBLE:
                return
            if relaxed.solved:
                yield from self._near(relaxed)
        if effort.node_limit:
            yield self._count_nodes(self.core.program.solve(effort, self._values()))

    def _near(self, relaxed: Answer) -> Iterator[Answer]:
        """Yield answers with integral values of the relaxation fixed, then with values shared with the incumbent."""
        values = relaxed.values
        whole = [v.name for v in self.core.program.columns if v.cat == pulp.LpInteger]
        rounded: Mapping[str, float] = {name: float(round(values[name])) for name in whole}
        yield self._nearby(_close(rounded, values, _WHOLE))
        before = None
        for _ in range(_TRIES):
            incumbent_values = self._values()
            if incumbent_values is None or self.incumbent is before:
                return
            before = self.incumbent
            yield self._nearby(
                _close({name: incumbent_values[name] for name in whole}, values, _SAME), incumbent_values
            )

    def _values(self) -> Mapping[str, float] | None:
        return self.values_of(self.incumbent.decoded) if self.incumbent is not None else None

    def _nearby(self, fixed: Mapping[str, float], start: Mapping[str, float] | None = None) -> Answer:
        return replace(self._count_nodes(self.core.program.solve(_NEARBY, start, fixed)), bound=-inf)

    def _count_nodes(self, answer: Answer) -> Answer:
        self.solves, self.nodes = self.solves + 1, self.nodes + answer.nodes
        return answer

    def _state_more(self, high: frozenset[int]) -> bool:
        """Add the rows that a solution which rises too high in these stages violates; return False if none is left."""
        if new := sorted(high - self.moments.refined):
            for stage in new:
                self.moments.refine(stage)
            return True
        if self.core.frugal:
            return False
        self.core.state_frugality()
        return True


def _close(target: Mapping[str, float], values: Mapping[str, float], most: float) -> dict[str, float]:
    """Return the target values close to these values; if many are not close, all but the farthest ones."""
    farthest = sorted(target, key=lambda name: -abs(target[name] - values[name]))[:_MOST_FREE]
    free = {name for name in farthest if abs(target[name] - values[name]) >= most}
    return {name: value for name, value in target.items() if name not in free}
