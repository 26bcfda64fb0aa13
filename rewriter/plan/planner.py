"""Plans a captured step: measured once, it is formulated and solved for any situation and any budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...passes.sources import Source
from ...solvers.portfolio import Portfolio
from ...solvers.problem.plan import Plan
from ..measure.optimizer_memory import OptimizerNeeds, optimizer_needs
from ..text.byte_sizes import Share
from .calibrate import calibrate
from .measured_step import MeasuredStep, measure_step
from .options import Options
from .progress import Progress
from .situation import Situation, situation_with, tensors_of
from .solve import frontier_of, smallest_step, solve_step
from .step_problem import PlannedStep, Variants


class StepPlanner:
    """Plans one captured step, for any situation in which it may begin.

    measured: the captured step with its costs, and with the noise of its codes if they may be approximate.
    portfolio: the solvers.
    """

    def __init__(
        self,
        measured: MeasuredStep,
        tensors: Mapping[Source, torch.Tensor],
        optimizer: torch.optim.Optimizer | None = None,
        portfolio: Portfolio | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Measure the noise of codes on the tensors of a sample, where codes may be approximate. Raises PlanError.

        optimizer: the optimizer that steps afterwards.
        """
        self.portfolio = portfolio if portfolio is not None else Portfolio()
        # The noise of codes does not depend on the optimizer.
        self.measured = calibrate(measured, _situation(measured, tensors), progress)
        self._needs = optimizer_needs(optimizer, measured.device) if optimizer is not None else None
        self._recomputing = measured.recomputing
        self._is_recomputing_calibrated = False

    @staticmethod
    def of(
        model: torch.nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        options: Options,
        optimizer: torch.optim.Optimizer | None = None,
        progress: Progress | None = None,
    ) -> tuple[StepPlanner, Situation]:
        """Capture and measure the step of a module on sample inputs; return its planner and the present situation.

        Raises CaptureError, MeasureError, PlanError.
        """
        measured = measure_step(model, args, kwargs, options, progress)
        tensors = tensors_of(model, args, kwargs)
        planner = StepPlanner(measured, tensors, optimizer, progress=progress)
        return planner, planner.situation(tensors)

    def situation(self, tensors: Mapping[Source, torch.Tensor]) -> Situation:
        """Return the situation in which the step begins on these tensors."""
        return _situation(self.measured, tensors, self._needs)

    def variants(self, situation: Situation) -> Variants:
        """Return the problems of the step in a situation; iterating over them may run the model (`Variants`)."""
        return Variants(self.measured, situation, lambda: self._measure_recomputing(situation))

    def plan(
        self,
        situation: Situation,
        budget: int | Share,
        progress: Progress | None = None,
        given_plan: Plan | None = None,
    ) -> PlannedStep:
        """Return the fastest plan within a budget (`solve_step`). Raises InfeasibleBudget, PlanError.

        given_plan: a plan to use instead of solving.
        """
        return solve_step(self.variants(situation), budget, self.portfolio, progress, given_plan)

    def smallest(self, situation: Situation, progress: Progress | None = None) -> PlannedStep:
        """Return the plan of the smallest peak."""
        return smallest_step(self.variants(situation), self.portfolio, progress)

    def frontier(self, situation: Situation, count: int, progress: Progress | None = None) -> list[Plan]:
        """Return at most `count` plans, from everything kept to the smallest peak."""
        return frontier_of(self.variants(situation), count, self.portfolio, progress)

    def _measure_recomputing(self, situation: Situation) -> MeasuredStep | None:
        """Return the variant that recomputes more, measured in the first situation in which it is needed."""
        if self._recomputing is not None and not self._is_recomputing_calibrated:
            self._recomputing = calibrate(self._recomputing, situation)
            self._is_recomputing_calibrated = True
        return self._recomputing


def _situation(
    measured: MeasuredStep, tensors: Mapping[Source, torch.Tensor], needs: OptimizerNeeds | None = None
) -> Situation:
    """Return the situation of a step on these tensors and those that the module holds."""
    return situation_with({**tensors, **measured.captured.held}, measured.granularity, needs)
