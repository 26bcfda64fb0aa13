"""The interface to integer programs: PuLP states them, and HiGHS solves them, or CBC where HiGHS is not installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from types import ModuleType

import pulp

from .answer import IMPOSSIBLE, NO_VARIABLES, SOLVER_SEED, Answer, Effort, Row, Status, Term


class IntegerProgram:
    """A program to minimize, solved several times with rows added and changed in between."""

    def __init__(self, name: str) -> None:
        self.pulp_problem = pulp.LpProblem(name, pulp.LpMinimize)
        self.columns: dict[pulp.LpVariable, int] = {}
        self.rows: list[Row] = []
        self.costs: dict[pulp.LpVariable, float] = {}
        self._constant_rows: list[Row] = []
        self._highs = None

    def variable(self, name: str, whole: bool = True, most: float | None = 1.0) -> pulp.LpVariable:
        """Add a variable between 0 and `most`."""
        variable = self.pulp_problem.add_variable(name, 0.0, most, pulp.LpInteger if whole else pulp.LpContinuous)
        self.columns[variable] = len(self.columns)
        return variable

    def minimize(self, costs: Iterable[tuple[float, Term]]) -> None:
        """Set the objective to minimize, the sum of factor · term; numbers among the terms do not count."""
        self.costs = _sum_factors(costs)[0]
        self._highs = None  # it has the previous costs
        self.pulp_problem.setObjective(pulp.LpAffineExpression(self.costs))

    def at_most(self, terms: Iterable[tuple[float, Term]], most: float) -> Row:
        """State that the sum of factor · term is at most `most`."""
        row = Row(*_sum_factors(terms), most)
        if row.factors:
            self.pulp_problem.addConstraint(row.constraint, f"row{len(self.rows)}")
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
        """Minimize.

        The result is deterministic as long as no limit in seconds is hit: one thread, a fixed seed.

        start: values to begin with, by name; ignored if they violate a row.
        fixed: values that some variables must have; the answer then holds for these only.
        """
        effort = effort or Effort()
        if any(row.most < 0 for row in self._constant_rows):
            return IMPOSSIBLE
        if not self.columns:
            return NO_VARIABLES
        if highspy() is None:
            return self._by_cbc(effort, start or {}, fixed or {})
        return self._by_highs().solve(effort, start or {}, fixed or {})

    def relaxed(self) -> Answer | None:
        """Minimize without integrality; None where HiGHS is not installed."""
        if any(row.most < 0 for row in self._constant_rows):
            return IMPOSSIBLE
        if not self.columns:
            return NO_VARIABLES
        return None if highspy() is None else self._by_highs().relaxed()

    def _by_highs(self):
        from .highs import HighsProgram  # imports highspy

        if self._highs is None:
            self._highs = HighsProgram(self.columns, self.rows, self.costs)
        return self._highs

    def _by_cbc(self, effort: Effort, start: Mapping[str, float], fixed: Mapping[str, float]) -> Answer:
        """Minimize by CBC, the solver included in PuLP; it gives no bound unless it has finished."""
        for variable in self.columns if start else ():
            variable.setInitialValue(start.get(variable.name, 0.0), check=False)
        upper = {variable: variable.upBound for variable in self.columns if variable.name in fixed}
        for variable in upper:
            variable.bounds(fixed[variable.name], fixed[variable.name])
        self.pulp_problem.solve(
            pulp.PULP_CBC_CMD(
                msg=False,
                threads=1,
                warmStart=bool(start),
                gapAbs=effort.gap,
                gapRel=0.0,
                maxNodes=effort.node_limit,
                timeLimit=None if effort.seconds_limit == inf else effort.seconds_limit,
                options=[f"randomSeed {SOLVER_SEED}", f"randomCbcSeed {SOLVER_SEED}"],
            )
        )
        for variable, most in upper.items():
            variable.bounds(0.0, most)
        if self.pulp_problem.status == pulp.LpStatusInfeasible:
            return IMPOSSIBLE
        if self.pulp_problem.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return Answer(Status.UNKNOWN, {}, inf, -inf)
        values = {variable.name: float(variable.varValue or 0.0) for variable in self.columns}
        objective = sum(cost * values[variable.name] for variable, cost in self.costs.items())
        if self.pulp_problem.sol_status == pulp.LpSolutionOptimal:
            return Answer(Status.OPTIMAL, values, objective, objective - effort.gap)
        return Answer(Status.FEASIBLE, values, objective, -inf)


def highspy() -> ModuleType | None:
    """Return the Python package of HiGHS, None if it cannot be imported."""
    try:
        import highspy
    except ImportError:
        return None
    return highspy


def _sum_factors(terms: Iterable[tuple[float, Term]]) -> tuple[dict[pulp.LpVariable, float], float]:
    """Return (factor per variable, sum of the constant terms)."""
    sums: dict[pulp.LpVariable, float] = {}
    constant = 0.0
    for factor, term in terms:
        if isinstance(term, pulp.LpVariable):
            sums[term] = sums.get(term, 0.0) + factor
        else:
            constant += factor * term
    return sums, constant
