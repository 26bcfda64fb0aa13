"""From options to a model with its batch; what cannot be done is refused before anything long begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import PlanOptions, StepOptions
from .output import check_target

if TYPE_CHECKING:
    from .request import Subject


def subject_of(model: str, asked: StepOptions, padded: bool = False) -> Subject:
    """The model and the batch that the options ask for. Raises ValueError for options that do not go together."""
    from ..models.config_overrides import parse_settings
    from ..plan.step import Options
    from .request import Request, build

    if isinstance(asked, PlanOptions):
        Options(**asked.approximation)  # refuses before the model is built
    return build(Request(model, parse_settings(asked.settings or ()), padded=padded, **asked.request))


def check_budget(budget: str) -> None:
    """A budget that cannot be read is refused before the model is built."""
    from ..text.byte_sizes import parse_bytes

    parse_bytes(budget)


def check_solver(solver: str) -> None:
    """A solver that does not exist is refused likewise."""
    from ...solvers.portfolio import SOLVER_NAMES

    if solver not in SOLVER_NAMES:
        raise ValueError(f"there is no solver {solver!r}: choose among {', '.join(SOLVER_NAMES)}")


def check_picture(path: Path | None) -> None:
    """A picture that could not be drawn or saved is refused likewise."""
    if path is not None:
        check_target(path)
        from ..display.pictures import check_drawable

        check_drawable(path)


def refuse_elsewhere(device: str | None) -> None:
    """Verification runs the model, so the device must be here."""
    from ..errors import ModelError
    from .request import Request

    if Request("", device=device).is_elsewhere:
        raise ModelError(f"verify runs the model, and {device!r} can only be planned for: use --device cpu or cuda")
