"""Builds the model and batch that options describe, and refuses impossible requests before anything long begins."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import StepOptions
from .output import check_target

if TYPE_CHECKING:
    from .request import Subject


def subject_of(model: str, requested: StepOptions, padded: bool = False, solver: str = "auto") -> Subject:
    """Return the model and the batch that the options describe. Raises ValueError for conflicting options."""
    from ..models.config_overrides import parse_settings
    from .request import Request, build

    request = Request.of(  # refuses before the model is built
        model,
        requested.arguments | {"solver": solver},
        requested.device,
        settings=parse_settings(requested.settings or ()),
        batch=requested.batch,
        sequence=requested.seq,
        dtype=requested.dtype,
        padded=padded,
    )
    return build(request)


def check_budget(budget: str) -> None:
    """Refuse a budget that cannot be read, before the model is built."""
    from ..text.byte_sizes import parse_bytes

    parse_bytes(budget)


def check_picture(path: Path | None) -> None:
    """Refuse a picture that could not be drawn or saved, before the model is built."""
    if path is not None:
        check_target(path)
        from ..display.pictures import check_drawable

        check_drawable(path)


def refuse_elsewhere(device: str | None) -> None:
    """Refuse a device that is not here, since verification runs the model."""
    from ..errors import ModelError
    from .request import planned_device

    if planned_device(device) is not None:
        raise ModelError(f"verify runs the model, and {device!r} can only be planned for: use --device cpu or cuda")
