"""A step's scheduling problem in a situation, its variants, and a plan for one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from ...passes.build_problem import ProblemMapping
from ...passes.step_graph import StepGraph
from ...solvers.problem.plan import Plan
from ...solvers.problem.problem import Problem
from ...solvers.problem.simulate import baseline_of
from .loss_outside import room_bytes
from .measured_step import MeasuredStep
from .present_gradients import problem_in
from .situation import Situation


@dataclass(frozen=True)
class StepProblem:
    """A step in a situation, ready to be solved.

    measured: the captured step with its costs.
    mapping: the mapping between the step graph and the scheduling problem.
    """

    measured: MeasuredStep = field(repr=False)
    mapping: ProblemMapping

    @property
    def problem(self) -> Problem:
        """The scheduling problem."""
        return self.mapping.problem

    @property
    def room_bytes(self) -> int:
        """The bytes to leave for a loss outside of the step."""
        return room_bytes(self.measured.captured, self.measured.granularity)

    def with_plan(self, plan: Plan) -> PlannedStep:
        """Return the step with a plan for it."""
        return PlannedStep(self.measured, self.mapping, plan)


@dataclass(frozen=True)
class PlannedStep:
    """A plan with the step that it is for."""

    measured: MeasuredStep = field(repr=False)
    mapping: ProblemMapping
    plan: Plan

    @property
    def step(self) -> StepGraph:
        """The step graph."""
        return self.measured.step

    @property
    def encoded_sites(self) -> tuple[tuple[int, int], ...]:
        """Each encoding of the plan once, as a storage with the number of its codec site."""
        return tuple((self.mapping.storages[value], number) for value, number in self.plan.encoded)

    @property
    def noise_energy(self) -> float:
        """The predicted E‖ĝ − g‖² that the plan's approximate codes add, over all gradients together."""
        sensitivity = self.measured.sensitivity
        return sensitivity.energy(self.encoded_sites) if sensitivity is not None else 0.0


def formulate_step(measured: MeasuredStep, situation: Situation) -> StepProblem:
    """Return the scheduling problem of a measured step in a situation."""
    problem = problem_in(measured.step, measured.mapping, situation)
    return StepProblem(measured, replace(measured.mapping, problem=problem))


class Variants:
    """The variants of a step in a situation: as it is, and with more recomputed in backward, if that is possible.

    Iterating may run the model: the noise of the second variant is measured when it is first reached.
    """

    def __init__(
        self, measured: MeasuredStep, situation: Situation, measure_recomputing: Callable[[], MeasuredStep | None]
    ) -> None:
        self._situation = situation
        self._measure_recomputing = measure_recomputing
        self.as_captured = formulate_step(measured, situation)

    def __iter__(self) -> Iterator[StepProblem]:
        yield self.as_captured
        if self._recomputing is not None:
            yield self._recomputing

    @cached_property
    def _recomputing(self) -> StepProblem | None:
        measured = self._measure_recomputing()
        if measured is None:
            return None
        variant = formulate_step(measured, self._situation)
        problem = replace(variant.problem, reference=baseline_of(self.as_captured.problem))
        return replace(variant, mapping=replace(variant.mapping, problem=problem))
