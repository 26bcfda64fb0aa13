"""Defines the errors that users see, each a `LowtideError`."""

from __future__ import annotations

from typing import Any

from ..solvers.problem.errors import InfeasibleBudget, LowtideError, ScheduleError
from ..solvers.problem.plain_text import printable_lines

__all__ = [
    "BudgetError",
    "CaptureError",
    "InfeasibleBudget",
    "LowtideError",
    "LowtideWarning",
    "ModelError",
    "PlanError",
    "ScheduleError",
    "StructureError",
    "TapeError",
    "Unsettled",
]


class LowtideWarning(UserWarning):
    """Warns of behaviour that differs from the original's or that one may not expect. Its text is safe to print."""

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class BudgetError(LowtideError, ValueError):
    """Reports a budget that is not a number of bytes."""


class CaptureError(LowtideError):
    """Reports a model whose training step cannot be captured. The message names the module and the line."""


class NothingToDifferentiate(CaptureError):
    """Reports a step of which no output requires a gradient, so that there is no backward to plan.

    settings: the attributes that the forward read before it came to this (`settings.Settings`).
    """

    settings: Any = None


class Unsettled(CaptureError):
    """Reports a module that gets its final parameters and buffers in its next forward.

    A step can be captured after that forward.
    what: the change that the forward makes.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what}; a step can be planned once a batch has gone through the original in training mode"


class StructureError(CaptureError, TypeError):
    """Reports an argument or output with a part of unknown type. The message names its place."""


class ModelError(LowtideError, ValueError):
    """Reports a model name or an option of the command line from which no model can be built."""


class PlanError(LowtideError, ValueError):
    """Reports a plan that is damaged, of another version, or made for another step."""


class TapeError(LowtideError, RuntimeError):
    """Reports a backward that cannot run: its tape is used up, or something it reads was changed in place."""
