"""GELU's derivative in levels that are the same for every layer and model, as others publish them: to compare with.

Forward is exact; backward multiplies with the level of the input's interval. This is eager by itself, without the
encodings that lowtide plans with, and so checks them too.
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
    """Inputs above borders[i - 1] and up to borders[i] (increasing) have the derivative levels[i], one more of them."""

    borders: tuple[float, ...]
    levels: tuple[float, ...]


def levels_under(weight: str, bits: int) -> Levels:
    """The best intervals of inputs with such a weight ("uniform:-10,10"): Few-bit Backward's, arXiv 2202.00441."""
    found = lowtide.codes("gelu", bits, weight)
    return Levels(found.borders, found.levels)


_STEPS = (-0.04922261145617846, 1.0979632065417297)
REGELU2 = Levels((-3.1858810036855245, -0.001178821281161997, 3.190832613414926), (0.0, _STEPS[0], sum(_STEPS), 1.0))
"""The slopes between the bends of the three ReLUs that stand for GELU in ReGELU2 (arXiv 2406.16282)."""


def peers() -> dict[str, Levels]:
    """The levels to compare with, by what they are called."""
    weights = {"U(-10, 10)": "uniform:-10,10", "N(0, 1)": "normal:0,1"}
    best = {
        f"levels for {name}, {bits} bits": levels_under(weight, bits)
        for name, weight in weights.items()
        for bits in (1, 2, 3, 4)
    }
    return {**best, "levels of ReGELU2, 2 bits": REGELU2}


class _Levelled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: nn.Module, told: Levels) -> Tensor:
        ctx.told = told
        ctx.save_for_backward(torch.bucketize(x, x.new_tensor(told.borders), out_int32=True))
        return activation(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (interval,) = ctx.saved_tensors
        (gradient,) = gradients
        return gradient * gradient.new_tensor(ctx.told.levels)[interval], None, None


class LevelledGelu(nn.Module):
    """A GELU of any form whose derivative has so few levels."""

    def __init__(self, activation: nn.Module, told: Levels) -> None:
        super().__init__()
        self.activation, self.told = activation, told

    def forward(self, x: Tensor) -> Tensor:
        """Exactly what the activation gives."""
        return _Levelled.apply(x, self.activation, self.told)


def with_levels(model: nn.Module, told: Levels) -> nn.Module:
    """A copy of the model in which each GELU has these levels, with parameters of its own.

    Raises ValueError where the model has no module that is a GELU.
    """
    found = copy.deepcopy(model)
    places = [name for name, module in found.named_modules() if isinstance(module, GELUS)]
    if not places:
        raise ValueError(f"{type(model).__name__} has no GELU among its modules: no derivative to put levels for")
    for name in places:
        parent, _, last = name.rpartition(".")
        setattr(found.get_submodule(parent), last, LevelledGelu(found.get_submodule(name), told))
    return found
