"""Searches an integer program over stages: the relaxation, what lies near its solution, then everything."""

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

Found = TypeVar("Found")

_NEARBY = Effort(node_limit=200)
_WHOLE = 1e-6
_SAME = 0.1  # a relaxed value this close to an incumbent's is left as that
_TRIES = 3
_MOST_FREE = 300  # choices left in a program near the relaxation: it takes about half a second


@dataclass(frozen=True, eq=False)
class Reading(Generic[Found]):
    """What a solution means: its objective (of the program); whether it keeps all limits; the stages in which it rises
    above the limit within the stage."""

    found: Found
    objective: float
    fits: bool = True
    high: frozenset[int] = frozenset()


class Search(Generic[Found]):
    """Finds the best solution under the limits that the program has at present.

    read: what a solution means. values_of: the values that describe something found before, None if the program
    cannot tell.
    """

    def __init__(
        self,
        core: StageProgram,
        moments: Moments,
        read: Callable[[Answer], Reading[Found]],
        values_of: Callable[[Found], Mapping[str, float] | None],
    ) -> None:
        self.core, self.moments, self.ancestry = core, moments, Ancestry(core)
        self.read, self.values_of = read, values_of
        self.incumbent: Reading[Found] | None = None
        self.solves = self.nodes = 0

    def best(self, start: Reading[Found] | None, effort: Effort) -> tuple[Reading[Found] | None, float]:
        """(the best solution, a proven bound on the objective), infinite if there is none.

        The relaxation with rows of `Ancestry` comes close to the best solution. Near to it good ones are found in a
        program with few choices left (Berthold 2014, relaxation enforced neighbourhood search; Danna et al. 2005,
        relaxation induced). Then, unless `effort.node_limit` is 0, all is searched. Inner moments of a stage are
        stated once a solution rises above the limit there, and all begins anew: there are only so many stages.
        """
        self.incumbent = start
        least = self._attempt(effort)
        while least is None:
            least = self._attempt(effort)
        return self.incumbent, least if self.incumbent is None else min(least, self.incumbent.objective)

    def _attempt(self, effort: Effort) -> float | None:
        """The proven bound with the best solution found; None if something had to be stated first."""
        least = -inf
        for answer in self._answers(effort):
            least = max(least, answer.bound)
            if answer.solved:
                reading = self.read(answer)
                if self.incumbent is None or reading.objective < self.incumbent.objective:
                    if reading.fits:
                        self.incumbent = reading
                    elif self._state_more(reading.high):
                        return None
            if self.incumbent is not None and self.incumbent.objective - least <= effort.gap:
                break
        return least

    def _answers(self, effort: Effort) -> Iterator[Answer]:
        """Answers of one program after another; the values of the relaxation and the bounds near it left out."""
        relaxed = self.ancestry.strengthen()
        if relaxed is not None:
            yield relaxed if relaxed.status is Status.INFEASIBLE else replace(relaxed, status=Status.UNKNOWN)
            if relaxed.status is Status.INFEASIBLE:
                return
            if relaxed.solved:
                yield from self._near(relaxed)
        if effort.node_limit:
            yield self._counted(self.core.program.solve(effort, self._values()))

    def _near(self, relaxed: Answer) -> Iterator[Answer]:
        """Answers with what is whole in the relaxation left so, then with what it shares with the incumbent."""
        values = relaxed.values
        whole = [v.name for v in self.core.program.columns if v.cat == pulp.LpInteger]
        rounded: Mapping[str, float] = {name: float(round(values[name])) for name in whole}
        yield self._nearby(_close(rounded, values, _WHOLE))
        before = None
        for _ in range(_TRIES):
            known = self._values()
            if known is None or self.incumbent is before:
                return
            before = self.incumbent
            yield self._nearby(_close({name: known[name] for name in whole}, values, _SAME), known)

    def _values(self) -> Mapping[str, float] | None:
        return self.values_of(self.incumbent.found) if self.incumbent is not None else None

    def _nearby(self, fixed: Mapping[str, float], start: Mapping[str, float] | None = None) -> Answer:
        return replace(self._counted(self.core.program.solve(_NEARBY, start, fixed)), bound=-inf)

    def _counted(self, answer: Answer) -> Answer:
        self.solves, self.nodes = self.solves + 1, self.nodes + answer.nodes
        return answer

    def _state_more(self, high: frozenset[int]) -> bool:
        """State what a solution that rises too high in these stages has disregarded; False if nothing."""
        if new := sorted(high - self.moments.refined):
            for stage in new:
                self.moments.refine(stage)
            return True
        if self.core.frugal:
            return False
        self.core.state_frugality()
        return True


def _close(wanted: Mapping[str, float], values: Mapping[str, float], most: float) -> dict[str, float]:
    """Those of the wanted values that are close to these; all but the farthest ones if many are not."""
    farthest = sorted(wanted, key=lambda name: -abs(wanted[name] - values[name]))[:_MOST_FREE]
    free = {name for name in farthest if abs(wanted[name] - values[name]) >= most}
    return {name: value for name, value in wanted.items() if name not in free}
