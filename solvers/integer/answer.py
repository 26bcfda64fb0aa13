"""What an integer program is made of and what a solver answers: terms, rows, effort, status, values and a bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import TypeGuard

import pulp

Term = pulp.LpVariable | float  # a number stands for a choice that there is not

SEED = 1


class Status(Enum):
    """How a solver ended."""

    OPTIMAL = "optimal"  # within the gap that was asked for
    FEASIBLE = "feasible"  # a limit was hit; the values satisfy every row
    INFEASIBLE = "infeasible"  # proven: no values satisfy every row
    UNKNOWN = "unknown"  # a limit was hit before any values were found


@dataclass(frozen=True)
class Effort:
    """How long to search.

    node_limit: nodes of branch and bound, which makes the same search of every run; seconds_limit is a safety net
    besides (what it cuts off depends on the machine). gap: stop once the value is proven this close, in the unit of
    the objective.
    """

    node_limit: int = 1_000_000
    seconds_limit: float = inf
    gap: float = 0.0


@dataclass(frozen=True, eq=False)
class Answer:
    """What a solver found out.

    values: by the name of the variable; empty unless OPTIMAL or FEASIBLE. objective: of these values, infinite if
    there are none. bound: proven to be no more than the objective of any solution (infinite if there is none).
    """

    status: Status
    values: Mapping[str, float]
    objective: float
    bound: float
    nodes: int = 0

    @property
    def solved(self) -> bool:
        """Whether it has values."""
        return self.status in (Status.OPTIMAL, Status.FEASIBLE)


NOTHING = Answer(Status.OPTIMAL, {}, 0.0, 0.0)  # of a program without variables
IMPOSSIBLE = Answer(Status.INFEASIBLE, {}, inf, inf)


class Row:
    """One inequality: the sum of factor · variable + `constant` is at most something that may change."""

    def __init__(self, factors: dict[pulp.LpVariable, float], constant: float, most: float) -> None:
        self.factors, self.constant = factors, constant
        self.stated = pulp.LpConstraint(pulp.LpAffineExpression(factors), pulp.LpConstraintLE, rhs=most - constant)

    @property
    def most(self) -> float:
        """What the variables' part may be at most."""
        return -self.stated.constant

    def change(self, most: float) -> None:
        """Set what the sum is at most."""
        self.stated.changeRHS(most - self.constant)


def is_choice(term: Term) -> TypeGuard[pulp.LpVariable]:
    """Whether it is a variable."""
    return isinstance(term, pulp.LpVariable)


def value_of(term: Term, values: Mapping[str, float]) -> float:
    """The value of a variable, or the number that stands for it."""
    return values[term.name] if isinstance(term, pulp.LpVariable) else term
