"""The models that the sweep runs, by name, each with the batches that it trains on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of one forward: by position, and by name."""


class NotBuilt(Exception):
    """A model that cannot be built here, with the reason; it counts neither for nor against lowtide."""


@dataclass(frozen=True)
class Subject:
    """A model with random weights and the batches for it.

    batch: makes the arguments of step `number`: new tensors at each call, equal ones for the same number, with the same
        shapes in all steps.
    """

    model: nn.Module
    batch: Callable[[int], Call]


@dataclass(frozen=True)
class Case:
    """A model to be tried.

    name: `family/model` or `family/model/class`.
    task: what it is trained to do, in a few words.
    build: makes it with the random numbers of torch's generator; raises NotBuilt, or what the package raises.
    """

    name: str
    task: str
    build: Callable[[], Subject]

    @property
    def family(self) -> str:
        """The package that it comes from."""
        return self.name.split("/")[0]
