"""Makes the batches of one model of transformers, and says which others to try."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ...case import Call
from .arguments import MAKERS
from .inputs import Inputs, Shape
from .labels import LABELS, no_labels


class Batches(Inputs):
    """The batches of one model, each made by its number."""

    def __call__(self, number: int) -> Call:
        """Return the keyword arguments of step `number`."""
        self.seed = number
        self.draw = torch.Generator().manual_seed(1000 + number)
        kwargs = {name: make(self) for name, make in MAKERS.items() if name in self.names and self._wants(name)}
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if self.shape.has_labels:
            kwargs |= {k: v for k, v in LABELS.get(self.task, no_labels)(self, kwargs).items() if k in self.names}
        if "return_loss" in self.names:
            kwargs["return_loss"] = True
        return (), kwargs

    def _wants(self, name: str) -> bool:
        return self.shape.has_mask or name != "attention_mask"


def variants(task: str, names: list[str]) -> Iterator[Shape]:
    """Yield batches to try one after the other."""
    plain = Shape(dimensions=5 if "video" in task else 4)
    yield plain
    if "input_features" in names:
        yield replace(plain, frames_first=True)
    if "pixel_values" in names and "text" in task:
        yield replace(plain, dimensions=5)
    if "input_values" in names and "input_features" not in names:
        yield replace(plain, has_wave_channel=True)
    if LABELS.get(task, no_labels) is not no_labels:
        yield replace(plain, has_labels=False)
