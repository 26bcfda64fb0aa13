"""Builds the model and batch that options describe, and refuses impossible requests before anything long begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import PlanOptions, StepOptions
from .output import check_target

if TYPE_CHECKING:
    from .request import Subject


def subject_of(model: str, requested: StepOptions, padded: bool = False) -> Subject:
    """Return the model and the batch that the options describe. Raises ValueError for conflicting options."""
    from ..models.config_overrides import parse_settings
    from ..plan.step import Options
    from .request import Request, build

    if isinstance(requested, PlanOptions):
        Options(**requested.approximation)  # refuses before the model is built
    return build(Request(model, parse_settings(requested.settings or ()), padded=padded, **requested.request))


def check_budget(budget: str) -> None:
    """Refuse a budget that cannot be read, before the model is built."""
    from ..text.byte_sizes import parse_bytes

    parse_bytes(budget)


def check_solver(solver: str) -> None:
    """Refuse an unknown solver, before the model is built."""
    from ...solvers.portfolio import SOLVER_NAMES

    if solver not in SOLVER_NAMES:
        raise ValueError(f"there is no solver {solver!r}: choose among {', '.join(SOLVER_NAMES)}")


def check_picture(path: Path | None) -> None:
    """Refuse a picture that could not be drawn or saved, before the model is built."""
    if path is not None:
        check_target(path)
        from ..display.pictures import check_drawable

        check_drawable(path)


def refuse_elsewhere(device: str | None) -> None:
    """Refuse a device that is not here, since verification runs the model."""
    from ..errors import ModelError
    from .request import Request

    if Request("", device=device).is_elsewhere:
        raise ModelError(f"verify runs the model, and {device!r} can only be planned for: use --device cpu or cuda")
