"""The one door to integer programs: PuLP states them, HiGHS solves them, and CBC where HiGHS is not installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from types import ModuleType

import pulp

from .answer import IMPOSSIBLE, NOTHING, SEED, Answer, Effort, Row, Status, Term


class IntegerProgram:
    """A program to minimize; solved several times, with rows added and changed in between."""

    def __init__(self, name: str) -> None:
        self.stated = pulp.LpProblem(name, pulp.LpMinimize)
        self.columns: dict[pulp.LpVariable, int] = {}
        self.rows: list[Row] = []
        self.costs: dict[pulp.LpVariable, float] = {}
        self._constant_rows: list[Row] = []
        self._highs = None

    def variable(self, name: str, whole: bool = True, most: float | None = 1.0) -> pulp.LpVariable:
        """A new variable between 0 and `most`."""
        variable = self.stated.add_variable(name, 0.0, most, pulp.LpInteger if whole else pulp.LpContinuous)
        self.columns[variable] = len(self.columns)
        return variable

    def minimize(self, costs: Iterable[tuple[float, Term]]) -> None:
        """State what to minimize: the sum of factor · term; numbers among the terms count nothing."""
        self.costs = _summed(costs)[0]
        self._highs = None  # it has the costs of before
        self.stated.setObjective(pulp.LpAffineExpression(self.costs))

    def at_most(self, terms: Iterable[tuple[float, Term]], most: float) -> Row:
        """State that the sum of factor · term is at most `most`."""
        row = Row(*_summed(terms), most)
        if row.factors:
            self.stated.addConstraint(row.stated, f"row{len(self.rows)}")
            self.rows.append(row)
        else:
            self._constant_rows.append(row)
        return row

    def solve(
        self,
        effort: Effort | None = None,
        start: Mapping[str, float] | None = None,
        fixed: Mapping[str, float] | None = None,
    ) -> Answer:
        """Minimize. `start`: values to begin with, by name; ignored where they do not satisfy every row. `fixed`:
        values that some variables have to have; what is proven then holds for these only.

        Deterministic as long as no limit in seconds is hit: one thread, a fixed seed.
        """
        effort = effort or Effort()
        if any(row.most < 0 for row in self._constant_rows):
            return IMPOSSIBLE
        if not self.columns:
            return NOTHING
        if highspy() is None:
            return self._by_cbc(effort, start or {}, fixed or {})
        return self._by_highs().solve(effort, start or {}, fixed or {})

    def relaxed(self) -> Answer | None:
        """Minimize without regard to what has to be whole; None where HiGHS is not installed."""
        if any(row.most < 0 for row in self._constant_rows):
            return IMPOSSIBLE
        if not self.columns:
            return NOTHING
        return None if highspy() is None else self._by_highs().relaxed()

    def _by_highs(self):
        from .highs import HighsProgram  # imports highspy

        if self._highs is None:
            self._highs = HighsProgram(self.columns, self.rows, self.costs)
        return self._highs

    def _by_cbc(self, effort: Effort, start: Mapping[str, float], fixed: Mapping[str, float]) -> Answer:
        """The same by the solver that PuLP brings along; it tells no bound unless it has finished."""
        for variable in self.columns if start else ():
            variable.setInitialValue(start.get(variable.name, 0.0), check=False)
        upper = {variable: variable.upBound for variable in self.columns if variable.name in fixed}
        for variable in upper:
            variable.bounds(fixed[variable.name], fixed[variable.name])
        self.stated.solve(
            pulp.PULP_CBC_CMD(
                msg=False,
                threads=1,
                warmStart=bool(start),
                gapAbs=effort.gap,
                gapRel=0.0,
                maxNodes=effort.node_limit,
                timeLimit=None if effort.seconds_limit == inf else effort.seconds_limit,
                options=[f"randomSeed {SEED}", f"randomCbcSeed {SEED}"],
            )
        )
        for variable, most in upper.items():
            variable.bounds(0.0, most)
        if self.stated.status == pulp.LpStatusInfeasible:
            return IMPOSSIBLE
        if self.stated.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return Answer(Status.UNKNOWN, {}, inf, -inf)
        values = {variable.name: float(variable.varValue or 0.0) for variable in self.columns}
        objective = sum(cost * values[variable.name] for variable, cost in self.costs.items())
        if self.stated.sol_status == pulp.LpSolutionOptimal:
            return Answer(Status.OPTIMAL, values, objective, objective - effort.gap)
        return Answer(Status.FEASIBLE, values, objective, -inf)


def highspy() -> ModuleType | None:
    """HiGHS's Python package, None if it cannot be imported."""
    try:
        import highspy
    except ImportError:
        return None
    return highspy


def _summed(terms: Iterable[tuple[float, Term]]) -> tuple[dict[pulp.LpVariable, float], float]:
    """(factor per variable, the sum of what is constant)."""
    sums: dict[pulp.LpVariable, float] = {}
    constant = 0.0
    for factor, term in terms:
        if isinstance(term, pulp.LpVariable):
            sums[term] = sums.get(term, 0.0) + factor
        else:
            constant += factor * term
    return sums, constant
