"""The one door to integer programs: PuLP states them, HiGHS solves them, and CBC where HiGHS is not installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import numpy as np
import pulp

Term = pulp.LpVariable | float  # a number stands for a choice that there is not

_SEED = 1


class Status(Enum):
    """How a solver ended."""

    OPTIMAL = "optimal"  # within the gap that was asked for
    FEASIBLE = "feasible"  # a limit was hit; the values satisfy every constraint
    INFEASIBLE = "infeasible"  # proven: no values satisfy every constraint
    UNKNOWN = "unknown"  # a limit was hit before any values were found


@dataclass(frozen=True)
class Effort:
    """How long to search.

    node_limit: nodes of branch and bound, which makes the same search of every run; seconds_limit is a safety net
    besides (what it cuts off depends on the machine). relative_gap: stop once the value is proven this close.
    """

    node_limit: int = 1_000_000
    seconds_limit: float = float("inf")
    relative_gap: float = 0.0


@dataclass(frozen=True, eq=False)
class Answer:
    """What a solver found out about a program that minimizes.

    values: by the name of the variable; empty unless OPTIMAL or FEASIBLE. objective: of these values, infinite if
    there are none. bound: proven to be no more than the objective of any solution (infinite if there is none).
    """

    status: Status
    values: Mapping[str, float]
    objective: float
    bound: float
    nodes: int = 0


class IntegerProgram:
    """A program to minimize; solved several times, with rows added and bounds of variables changed in between.

    It is stated in PuLP, and its matrix kept as arrays besides, to which only what is new is added.
    """

    def __init__(self, name: str) -> None:
        self.stated = pulp.LpProblem(name, pulp.LpMinimize)
        self._columns: dict[pulp.LpVariable, int] = {}
        self._rows: list[pulp.LpConstraint] = []
        self._starts: list[int] = [0]
        self._indices: list[int] = []
        self._coefficients: list[float] = []

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, variables)."""
        return len(self._rows), len(self._columns)

    def variable(self, name: str, whole: bool = True, most: float | None = 1.0) -> pulp.LpVariable:
        """A new variable between 0 and `most`; names are told apart without regard to what they mean."""
        variable = self.stated.add_variable(name, 0.0, most, pulp.LpInteger if whole else pulp.LpContinuous)
        self._columns[variable] = len(self._columns)
        return variable

    def minimize(self, costs: Iterable[tuple[float, Term]]) -> None:
        """State what to minimize: the sum of factor · term; numbers among the terms count nothing."""
        self.stated.setObjective(pulp.LpAffineExpression(_summed(costs)[0]))

    def at_most(self, terms: Iterable[tuple[float, Term]], most: float) -> None:
        """State that the sum of factor · term is at most `most`."""
        sums, constant = _summed(terms)
        if not sums and constant <= most:
            return
        row = pulp.LpConstraint(pulp.LpAffineExpression(sums), pulp.LpConstraintLE, rhs=most - constant)
        self.stated.addConstraint(row, f"row{len(self._rows)}")
        self._rows.append(row)
        self._indices += [self._columns[variable] for variable in sums]
        self._coefficients += sums.values()
        self._starts.append(len(self._indices))

    def solve(self, effort: Effort | None = None, start: Mapping[str, float] | None = None) -> Answer:
        """Minimize. `start`: values to begin with, by name; ignored where they satisfy not every row.

        Deterministic as long as no limit in seconds is hit: one thread, a fixed seed.
        """
        effort = effort or Effort()
        highs = _highspy()
        return self._by_cbc(effort, start) if highs is None else self._by_highs(highs, effort, start)

    def _by_highs(self, highs: ModuleType, effort: Effort, start: Mapping[str, float] | None) -> Answer:
        solver = highs.Highs()
        options = {
            "output_flag": False,
            "threads": 1,
            "random_seed": _SEED,
            "mip_rel_gap": effort.relative_gap,
            "mip_abs_gap": 1e-9,
            "mip_max_nodes": min(effort.node_limit, 2**31 - 1),
            "time_limit": effort.seconds_limit,
        }
        for name, value in options.items():
            solver.setOptionValue(name, value)
        solver.passModel(self._model(highs))
        if start is not None:
            given = highs.HighsSolution()
            given.col_value = [start.get(variable.name, 0.0) for variable in self._columns]
            solver.setSolution(given)
        solver.run()
        return self._told(highs, solver)

    def _model(self, highs: ModuleType) -> Any:
        """The program as HiGHS takes it."""
        columns = self._columns
        model = highs.HighsLp()
        model.num_col_, model.num_row_ = len(columns), len(self._rows)
        cost = np.zeros(len(columns))
        for variable, coefficient in (self.stated.objective or {}).items():
            cost[columns[variable]] = coefficient
        model.col_cost_ = cost
        model.col_lower_ = np.array([-np.inf if v.lowBound is None else v.lowBound for v in columns], dtype=float)
        model.col_upper_ = np.array([np.inf if v.upBound is None else v.upBound for v in columns], dtype=float)
        model.row_lower_ = np.full(len(self._rows), -np.inf)
        model.row_upper_ = np.array([-row.constant for row in self._rows], dtype=float)
        model.a_matrix_.format_ = highs.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._starts, dtype=np.int32)
        model.a_matrix_.index_ = np.array(self._indices, dtype=np.int32)
        model.a_matrix_.value_ = np.array(self._coefficients, dtype=float)
        kinds = highs.HighsVarType
        model.integrality_ = [kinds.kInteger if v.cat == pulp.LpInteger else kinds.kContinuous for v in columns]
        return model

    def _told(self, highs: ModuleType, solver: Any) -> Answer:
        """HiGHS's answer."""
        status, info = solver.getModelStatus(), solver.getInfo()
        nodes = max(int(info.mip_node_count), 0)
        kinds = highs.HighsModelStatus
        if status in (kinds.kInfeasible, kinds.kUnboundedOrInfeasible):
            return Answer(Status.INFEASIBLE, {}, np.inf, np.inf, nodes)
        found = info.primal_solution_status == highs.SolutionStatus.kSolutionStatusFeasible
        if status == kinds.kOptimal and found:
            # a program without integers has no bound of its own
            whole = any(variable.cat == pulp.LpInteger for variable in self._columns)
            bound = info.mip_dual_bound if whole else info.objective_function_value
            return Answer(Status.OPTIMAL, self._named(solver), info.objective_function_value, bound, nodes)
        if found and np.isfinite(info.objective_function_value):
            values = self._named(solver)
            return Answer(Status.FEASIBLE, values, info.objective_function_value, info.mip_dual_bound, nodes)
        return Answer(Status.UNKNOWN, {}, np.inf, info.mip_dual_bound, nodes)

    def _named(self, solver: Any) -> dict[str, float]:
        values = solver.getSolution().col_value
        return {variable.name: value for variable, value in zip(self._columns, values, strict=True)}

    def _by_cbc(self, effort: Effort, start: Mapping[str, float] | None) -> Answer:
        """The same by the solver that PuLP brings along; it tells no bound unless it has finished."""
        variables = list(self._columns)
        if start is not None:
            for variable in variables:
                variable.setInitialValue(start.get(variable.name, 0.0), check=False)
        self.stated.solve(
            pulp.PULP_CBC_CMD(
                msg=False,
                threads=1,
                warmStart=start is not None,
                gapRel=effort.relative_gap,
                maxNodes=effort.node_limit,
                timeLimit=None if effort.seconds_limit == np.inf else effort.seconds_limit,
                options=[f"randomSeed {_SEED}", f"randomCbcSeed {_SEED}"],
            )
        )
        if self.stated.status == pulp.LpStatusInfeasible:
            return Answer(Status.INFEASIBLE, {}, np.inf, np.inf)
        if self.stated.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
            return Answer(Status.UNKNOWN, {}, np.inf, -np.inf)
        values = {variable.name: float(variable.varValue or 0.0) for variable in variables}
        costs = dict(self.stated.objective or {})
        objective = sum(cost * values[variable.name] for variable, cost in costs.items())
        if self.stated.sol_status == pulp.LpSolutionOptimal:
            bound = objective - effort.relative_gap * abs(objective)
            return Answer(Status.OPTIMAL, values, objective, bound)
        return Answer(Status.FEASIBLE, values, objective, -np.inf)


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


def _highspy() -> ModuleType | None:
    """HiGHS's Python package, None if it cannot be imported."""
    try:
        import highspy
    except ImportError:
        return None
    return highspy
