"""Passes programs to HiGHS: the whole integer program, and its relaxation with only the rows added since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import fsum, inf
from typing import Any

import highspy
import numpy as np
import pulp

from .answer import IMPOSSIBLE, SOLVER_SEED, Answer, Effort, Row, Status

_MOST_PIVOTS = 6_000
_SLACK = 1e-6  # HiGHS's tolerances
_INFEASIBLE = (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible)


class HighsProgram:
    """A program whose matrix is kept as arrays, to which only new rows are added."""

    def __init__(self, columns: dict[pulp.LpVariable, int], rows: list[Row], costs: dict[pulp.LpVariable, float]):
        self.columns, self.rows, self.costs = columns, rows, costs
        self._starts: list[int] = [0]
        self._indices: list[int] = []
        self._factors: list[float] = []
        self._relaxed: Any = None  # solved before, to continue from there
        self._relaxed_shape, self._relaxed_most = (0, -1), np.empty(0)

    def solve(self, effort: Effort, start: Mapping[str, float], fixed: Mapping[str, float]) -> Answer:
        """Solve the integer program."""
        answer = self._run_solver(effort, start, fixed)
        if not (start and answer.solved) or self._cost(answer) <= _with_tolerance(answer.objective):
            return answer
        # HiGHS 1.16 reports the objective to which presolve improves the start, and prunes by it, but returns the
        # unimproved start. The bound holds; a second run without a start finds the values of that objective.
        fresh = self._run_solver(effort, {}, fixed)
        given = replace(answer, status=Status.FEASIBLE, objective=self._cost(answer))
        best = fresh if fresh.solved and fresh.objective <= given.objective else given
        bound = min(max(answer.bound, fresh.bound), best.objective)
        return replace(best, bound=bound, nodes=answer.nodes + fresh.nodes)

    def _run_solver(self, effort: Effort, start: Mapping[str, float], fixed: Mapping[str, float]) -> Answer:
        """Return the answer that HiGHS reports for the integer program."""
        solver = self._prepare_solver(effort, start, fixed)
        solver.run()
        status, info = solver.getModelStatus(), solver.getInfo()
        nodes = max(int(info.mip_node_count), 0)
        if status in _INFEASIBLE:
            return IMPOSSIBLE
        # a program without integer variables has no bound of its own
        bound = info.mip_dual_bound if np.isfinite(info.mip_dual_bound) else -inf
        has_values = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        if not has_values or not np.isfinite(info.objective_function_value):
            return Answer(Status.UNKNOWN, {}, inf, bound, nodes)
        ended = Status.OPTIMAL if status == highspy.HighsModelStatus.kOptimal else Status.FEASIBLE
        if ended is Status.OPTIMAL and not any(v.cat == pulp.LpInteger for v in self.columns):
            bound = info.objective_function_value
        return Answer(ended, self._values(solver), info.objective_function_value, bound, nodes)

    def _prepare_solver(self, effort: Effort, start: Mapping[str, float], fixed: Mapping[str, float]) -> highspy.Highs:
        """Return a solver with the integer program."""
        solver = _solver()
        solver.setOptionValue("mip_rel_gap", 0.0)
        solver.setOptionValue("mip_abs_gap", max(effort.gap, 1e-9))
        solver.setOptionValue("mip_max_nodes", min(effort.node_limit, 2**31 - 1))
        solver.setOptionValue("time_limit", effort.seconds_limit)
        model = self._model()
        whole, real = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
        model.integrality_ = [whole if v.cat == pulp.LpInteger else real for v in self.columns]
        if fixed:
            named = np.array([fixed.get(variable.name, np.nan) for variable in self.columns])
            model.col_lower_ = np.where(np.isnan(named), model.col_lower_, named)
            model.col_upper_ = np.where(np.isnan(named), model.col_upper_, named)
        solver.passModel(model)
        if start:
            given = highspy.HighsSolution()
            given.col_value = [start.get(variable.name, 0.0) for variable in self.columns]
            solver.setSolution(given)
        return solver

    def _cost(self, answer: Answer) -> float:
        """Return the objective of the values of an answer."""
        return fsum(cost * answer.values[variable.name] for variable, cost in self.costs.items())

    def relaxed(self) -> Answer:
        """Solve the relaxation by the simplex method, from where the last solve ended."""
        self._append_rows()
        if self._relaxed_shape[1] != len(self.columns):
            self._begin_relaxed()
        else:
            self._continue_relaxed()
        self._relaxed_shape, self._relaxed_most = (len(self.rows), len(self.columns)), self._most()
        self._relaxed.run()
        if self._relaxed.getModelStatus() == highspy.HighsModelStatus.kIterationLimit:
            self._begin_relaxed()  # from a degenerate vertex it may cycle
            self._relaxed.run()
        solver = self._relaxed
        status = solver.getModelStatus()
        if status in _INFEASIBLE:
            return IMPOSSIBLE
        if status != highspy.HighsModelStatus.kOptimal:
            return Answer(Status.UNKNOWN, {}, inf, -inf)
        objective = solver.getInfo().objective_function_value
        return Answer(Status.OPTIMAL, self._values(solver), objective, objective)

    def _begin_relaxed(self) -> None:
        self._relaxed = _solver()
        self._relaxed.setOptionValue("simplex_iteration_limit", _MOST_PIVOTS)
        self._relaxed.passModel(self._model())

    def _continue_relaxed(self) -> None:
        solver, rows, most = self._relaxed, self._relaxed_shape[0], self._most()
        if new := len(self.rows) - rows:
            first = self._starts[rows]
            solver.addRows(
                new,
                np.full(new, -inf),
                most[rows:],
                len(self._indices) - first,
                np.array(self._starts[rows:-1], dtype=np.int32) - first,
                np.array(self._indices[first:], dtype=np.int32),
                np.array(self._factors[first:], dtype=float),
            )
        for row in np.flatnonzero(most[:rows] != self._relaxed_most).tolist():
            solver.changeRowBounds(row, -inf, most[row])

    def _append_rows(self) -> None:
        for row in self.rows[len(self._starts) - 1 :]:
            self._indices += [self.columns[variable] for variable in row.factors]
            self._factors += row.factors.values()
            self._starts.append(len(self._indices))

    def _most(self) -> np.ndarray:
        return np.array([row.most for row in self.rows], dtype=float)

    def _model(self) -> Any:
        """Return the program as a model of HiGHS, without integrality."""
        self._append_rows()
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self.columns), len(self.rows)
        model.col_cost_ = np.array([self.costs.get(variable, 0.0) for variable in self.columns])
        model.col_lower_ = np.zeros(len(self.columns))
        model.col_upper_ = np.array([inf if v.upBound is None else v.upBound for v in self.columns], dtype=float)
        model.row_lower_ = np.full(len(self.rows), -inf)
        model.row_upper_ = self._most()
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._starts, dtype=np.int32)
        model.a_matrix_.index_ = np.array(self._indices, dtype=np.int32)
        model.a_matrix_.value_ = np.array(self._factors, dtype=float)
        return model

    def _values(self, solver: Any) -> dict[str, float]:
        values = solver.getSolution().col_value
        return {variable.name: value for variable, value in zip(self.columns, values, strict=True)}


def _with_tolerance(objective: float) -> float:
    """Return the most that values of this objective may cost, within tolerance."""
    return objective + _SLACK * (1.0 + abs(objective))


class _Silent(highspy.Highs):
    """HiGHS without output: from 1.16 on its constructor, which registers callbacks, prints a banner."""

    def enableCallbacks(self) -> None:
        self.silent()
        super().enableCallbacks()


def _solver() -> highspy.Highs:
    solver = _Silent()
    for name, value in {"output_flag": False, "threads": 1, "random_seed": SOLVER_SEED}.items():
        solver.setOptionValue(name, value)
    return solver
