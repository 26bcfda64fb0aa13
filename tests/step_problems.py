"""The scheduling problem of a module's step, as planning formulates it, for tests of what it consists of."""

from __future__ import annotations

from typing import Any

import torch
from lowtide.rewriter.plan.options import Options
from lowtide.rewriter.plan.planner import StepPlanner
from lowtide.rewriter.plan.step_problem import StepProblem, Variants


def variants_of(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any], **options: Any) -> Variants:
    """Return the variants of a module's step in the present situation."""
    planner, present = StepPlanner.of(model, args, kwargs, Options.of("variants_of", options))
    return planner.variants(present)


def formulated(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any], **options: Any) -> StepProblem:
    """Return the problem of a module's step in the present situation, as it is captured."""
    return variants_of(model, args, kwargs, **options).as_captured
