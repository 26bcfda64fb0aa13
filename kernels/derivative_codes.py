"""An activation's input kept as the number of a level of its derivative: exact in forward, approximate in backward.

Kept: ceil(n b / 8) bytes at b bits, where eager keeps the input, 4 n. Decoded is, for each level, an input at which the
derivative is that level: the activation's own backward then multiplies with the level. The levels are the best for
inputs that are normally distributed with the mean and standard deviation told ("Few-Bit Backward", arXiv 2202.00441,
with levels for the values of f', `value_codes`).
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite, log2

import torch
from torch import Tensor

from .derivatives import activation_of
from .few_bit import decode_levels, encode_by_borders
from .input_weights import Normal
from .library import define
from .packed_codes import bytes_of_codes
from .step_functions import StepFunction
from .value_codes import value_codes

_STEPS = 4  # of the standard deviation to a factor of 2, and of the mean to a standard deviation


def fitted_normal(x: Tensor) -> dict[str, float]:
    """Mean and standard deviation of a tensor's elements, roughly: so that few tables serve many layers."""
    std = float(x.float().std()) if x.numel() > 1 else 0.0
    mean = float(x.float().mean()) if x.numel() else 0.0
    if not (isfinite(std) and isfinite(mean)) or std < 1e-6:
        return {"mean": 0.0, "std": 1.0}
    std = 2.0 ** (round(_STEPS * log2(std)) / _STEPS)
    return {"mean": round(_STEPS * mean / std) / _STEPS * std, "std": std}


@lru_cache(maxsize=256)
def _codes(activation: str, bits: int, mean: float, std: float) -> StepFunction:
    return value_codes(activation_of(activation), bits, Normal(mean, std))


def _encode(x: Tensor, activation: str, bits: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    codes = _codes(activation, bits, mean, std)
    return encode_by_borders(x, codes.borders.tolist(), codes.level_of_interval.tolist(), bits)


def _decode(
    code: Tensor,
    activation: str,
    bits: int,
    mean: float = 0.0,
    std: float = 1.0,
    *,
    size: list[int],
    stride: list[int],
    dtype: torch.dtype,
) -> Tensor:
    inputs = _codes(activation, bits, mean, std).representatives.tolist()
    return decode_levels(code, inputs, bits, size, stride, dtype)


encode_derivative = define(
    "encode_derivative(Tensor x, str activation, int bits, float mean=0., float std=1.) -> Tensor",
    _encode,
    lambda x, activation, bits, mean=0.0, std=1.0: x.new_empty((bytes_of_codes(x.numel(), bits),), dtype=torch.uint8),
)
"""Which level of the derivative of `activation` (a name of `derivatives.NAMES`) each element of x is nearest to: uint8
[ceil(n bits / 8)]. mean, std: of the normal distribution that the levels are the best for."""

decode_derivative = define(
    "decode_derivative(Tensor code, str activation, int bits, float mean=0., float std=1., *, int[] size, int[] stride,"
    " ScalarType dtype) -> Tensor",
    _decode,
    lambda code, activation, bits, mean=0.0, std=1.0, *, size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device=code.device
    ),
)
"""Inputs at which the derivative is the level of each code: of a size, (dense) stride and dtype."""
