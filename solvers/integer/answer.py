"""The parts of an integer program and of a solver's answer: terms, rows, effort, status, values and a bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TypeGuard

import pulp

Term = pulp.LpVariable | float  # a number where there is no choice

SOLVER_SEED = 1


class Status(Enum):
    """The result with which a solver ended."""

    OPTIMAL = "optimal"  # within the requested gap
    FEASIBLE = "feasible"  # a limit was hit; the values satisfy every row
    INFEASIBLE = "infeasible"  # proven: no values satisfy every row
    UNKNOWN = "unknown"  # a limit was hit before any values were found


@dataclass(frozen=True)
class Effort:
    """Limits of a search.

    node_limit: nodes of branch and bound, so that every run makes the same search.
    seconds_limit: an additional safety net; where it stops the search depends on the machine.
    gap: stop once the value is proven this close, in the unit of the objective.
    """

    node_limit: int = 1_000_000
    seconds_limit: float = inf
    gap: float = 0.0


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer of a solver.

    values: by the name of the variable; empty unless OPTIMAL or FEASIBLE.
    objective: of these values, infinite without any.
    bound: proven to be at most the objective of any solution, infinite without any.
    nodes: of branch and bound that were searched.
    """

    status: Status
    values: Mapping[str, float]
    objective: float
    bound: float
    nodes: int = 0

    @property
    def solved(self) -> bool:
        """True if the answer has values."""
        return self.status in (Status.OPTIMAL, Status.FEASIBLE)


NO_VARIABLES = Answer(Status.OPTIMAL, {}, 0.0, 0.0)  # of a program without variables
IMPOSSIBLE = Answer(Status.INFEASIBLE, {}, inf, inf)


class Row:
    """One inequality: the sum of factor · variable + `constant` is at most a limit that may change."""

    def __init__(self, factors: dict[pulp.LpVariable, float], constant: float, most: float) -> None:
        self.factors, self.constant = factors, constant
        self.constraint = pulp.LpConstraint(pulp.LpAffineExpression(factors), pulp.LpConstraintLE, rhs=most - constant)

    @property
    def most(self) -> float:
        """The limit of the variables' part of the sum."""
        return -self.constraint.constant

    def change(self, most: float) -> None:
        """Set the limit of the sum."""
        self.constraint.changeRHS(most - self.constant)


def is_choice(term: Term) -> TypeGuard[pulp.LpVariable]:
    """Return whether a term is a variable."""
    return isinstance(term, pulp.LpVariable)


def value_of(term: Term, values: Mapping[str, float]) -> float:
    """Return the value of a variable, or the number in its place."""
    return values[term.name] if isinstance(term, pulp.LpVariable) else term
