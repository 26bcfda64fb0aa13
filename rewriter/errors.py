"""The errors of the public face, each a `LowtideError`."""

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
    """Something that works otherwise than one may expect of a rewritten module. Its text is safe to print."""

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class BudgetError(LowtideError, ValueError):
    """A budget that is no number of bytes."""


class CaptureError(LowtideError):
    """A model whose training step cannot be captured; names the module and the line at fault."""


class NothingToDifferentiate(CaptureError):
    """No output of the step requires a gradient: there is no backward to make room for.

    settings: the attributes that the forward read to come to this (`settings.Settings`).
    """

    settings: Any = None


class Unsettled(CaptureError):
    """A module that gets its final parameters and buffers in its next forward: a step can be captured after that.

    what: what that forward changes.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what}; a step can be planned once a batch has gone through the original in training mode"


class StructureError(CaptureError, TypeError):
    """An argument or output with a part of unknown type; names its place."""


class ModelError(LowtideError, ValueError):
    """A model name or option of the command line that cannot be built."""


class PlanError(LowtideError, ValueError):
    """A plan that is damaged, of another version, or made for another step."""


class TapeError(LowtideError, RuntimeError):
    """A backward that cannot be run: its tape is used up, or what it reads was changed in place."""
