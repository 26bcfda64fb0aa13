"""The arguments of diffusers' models: sizes of tensors drawn from the normal distribution, and all others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TIMES = 1000  # steps of noise
IMAGE, FILM = (4, 3, 32, 32), (2, 3, 9, 16, 16)
Models = dict[str, tuple[str, dict[str, Any], dict[str, Any]]]
"""By name: class, configuration, and arguments; a tuple is the size of a tensor of the normal distribution."""


@dataclass(frozen=True)
class Made:
    """An argument that is not drawn from the normal distribution. make: takes the generator."""

    make: Callable[[torch.Generator], Any]


def times(rows: int) -> Made:
    """Return the numbers of steps of noise."""
    return Made(lambda draw: torch.randint(TIMES, (rows,), generator=draw))


def shares(rows: int) -> Made:
    """Return numbers in [0, 1)."""
    return Made(lambda draw: torch.rand(rows, generator=draw))


def below(end: int, *size: int) -> Made:
    """Return whole numbers from 0 to below `end`."""
    return Made(lambda draw: torch.randint(end, size, generator=draw))


def given(value: Any) -> Made:
    """Return a value that is the same in every step."""
    return Made(lambda draw: value.clone() if isinstance(value, Tensor) else value)


def ones(*size: int, dtype: torch.dtype = torch.float32) -> Made:
    """Return a tensor of ones."""
    return given(torch.ones(size, dtype=dtype))


def several(count: int, *size: int) -> Made:
    """Return a list of tensors of the normal distribution."""
    return Made(lambda draw: [torch.randn(*size, generator=draw) for _ in range(count)])


def sizes(rows: int) -> dict[str, Made]:
    """Return the sizes of pictures that CogView takes as arguments."""
    return {name: given(torch.tensor([[64, 64]] * rows)) for name in ("original_size", "target_size")} | {
        "crop_coords": given(torch.tensor([[0, 0]] * rows))
    }


def places(height: int, width: int, axes: int) -> Made:
    """Return the position of each patch [height · width, axes]."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ids = torch.zeros(height * width, axes)
    ids[:, 1], ids[:, 2] = rows.flatten(), columns.flatten()
    return given(ids)
