"""Models of diffusers: U-Nets, transformers and autoencoders with small configurations, on noise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import diffusers
import torch

from ...case import Call, Case, NotBuilt, Subject
from . import autoencoders, image_transformers, u_nets, video_transformers
from .arguments import Made

_MODELS = u_nets.MODELS | image_transformers.MODELS | video_transformers.MODELS | autoencoders.MODELS


def cases() -> Iterator[Case]:
    """Yield all models."""
    for name, (class_name, _, _) in _MODELS.items():
        yield Case(f"diffusers/{name}/{class_name}", "noise", partial(_build, name))


def _build(name: str) -> Subject:
    class_name, config, arguments = _MODELS[name]
    if not hasattr(diffusers, class_name):
        raise NotBuilt(f"diffusers has no {class_name}")
    return Subject(getattr(diffusers, class_name)(**config), partial(_batch, arguments))


def _batch(arguments: dict[str, Any], number: int) -> Call:
    draw = torch.Generator().manual_seed(number)
    return (), {
        name: argument.make(draw) if isinstance(argument, Made) else torch.randn(*argument, generator=draw)
        for name, argument in arguments.items()
    }
