"""GELU's derivative in published levels, the same for every layer and model, to compare with.

Forward is exact; backward multiplies with the level of the input's interval. This is eager alone, without the encodings
that lowtide plans with, so it checks them too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import lowtide
import torch
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, GELUActivation, GELUTanh, NewGELUActivation

GELUS = (nn.GELU, GELUActivation, NewGELUActivation, FastGELUActivation, GELUTanh)


@dataclass(frozen=True)
class Levels:
    """A step function: inputs above borders[i - 1] and up to borders[i] have the derivative levels[i].

    borders: increasing.
    levels: one more than borders.
    """

    borders: tuple[float, ...]
    levels: tuple[float, ...]


def levels_under(weight: str, bits: int) -> Levels:
    """Return the best intervals of inputs under a weight ("uniform:-10,10"): Few-bit Backward's, arXiv 2202.00441."""
    codes = lowtide.codes("gelu", bits, weight)
    return Levels(codes.borders, codes.levels)


_STEPS = (-0.04922261145617846, 1.0979632065417297)
REGELU2 = Levels((-3.1858810036855245, -0.001178821281161997, 3.190832613414926), (0.0, _STEPS[0], sum(_STEPS), 1.0))
"""The slopes between the bends of the three ReLUs that stand for GELU in ReGELU2 (arXiv 2406.16282)."""


def peers() -> dict[str, Levels]:
    """Return the levels to compare with, by name."""
    weights = {"U(-10, 10)": "uniform:-10,10", "N(0, 1)": "normal:0,1"}
    best = {
        f"levels for {name}, {bits} bits": levels_under(weight, bits)
        for name, weight in weights.items()
        for bits in (1, 2, 3, 4)
    }
    return {**best, "levels of ReGELU2, 2 bits": REGELU2}


class _Levelled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: nn.Module, levels: Levels) -> Tensor:
        ctx.slopes = levels.levels
        ctx.save_for_backward(torch.bucketize(x, x.new_tensor(levels.borders), out_int32=True))
        return activation(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (interval,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * gradient.new_tensor(ctx.slopes)[interval], None, None


class LevelledGelu(nn.Module):
    """A GELU of any form whose derivative has these levels."""

    def __init__(self, activation: nn.Module, levels: Levels) -> None:
        super().__init__()
        self.activation, self.levels = activation, levels

    def forward(self, x: Tensor) -> Tensor:
        """Return exactly what the activation gives."""
        return _Levelled.apply(x, self.activation, self.levels)


def with_levels(model: nn.Module, levels: Levels) -> nn.Module:
    """Return a copy of the model, with its own parameters, in which each GELU has these levels.

    Raises ValueError where the model has no module that is a GELU.
    """
    copied = copy.deepcopy(model)
    places = [name for name, module in copied.named_modules() if isinstance(module, GELUS)]
    if not places:
        raise ValueError(
            f"{type(model).__name__} has no GELU among its modules: there is no derivative to replace by levels"
        )
    for name in places:
        parent, _, last = name.rpartition(".")
        setattr(copied.get_submodule(parent), last, LevelledGelu(copied.get_submodule(name), levels))
    return copied
