"""An activation's input kept as the number of a level of its derivative: exact in forward, approximate in backward.

Kept: ceil(n b / 8) bytes at b bits, where eager keeps the input, 4 n. Decoded is, for each level, an input at which the
derivative is that level: the activation's own backward then multiplies with the level. The levels are the best ones
for the values of f' ("Few-Bit Backward", arXiv 2202.00441, and `value_codes`) at the inputs that there are, each
weighted by the square of the gradient that f' is multiplied with: E‖g (f'(x) - level)‖² is least.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .codecs import Codec
from .derivatives import activation_of
from .few_bit import decode_levels, encode_by_borders
from .input_weights import Histogram, Normal
from .step_functions import StepFunction
from .value_codes import value_codes

# What encoding (`few_bit.encode_by_borders`) and decoding (`few_bit.decode_levels`) are told, by name.
Told = tuple[dict[str, Any], dict[str, Any]]

_BINS = 64  # 512 make the levels 1 % better and take three times as long
_MOST_SAMPLES = 1 << 18


@cache
def derivative_codecs(activation: str) -> tuple[Codec, ...]:
    """Codecs for what only the backward of an activation reads: levels of its derivative in 1 to 4 bits."""
    return tuple(
        Codec(
            f"{bits}-bit {activation}'",
            encode_by_borders,
            decode_levels,
            (torch.float32, torch.bfloat16, torch.float16),
            "approximate",
            tells_dtype=True,
            told=usual_codes(activation, bits),
            fit=partial(fitted_codes, activation, bits),
            family=f"{activation}'",
        )
        for bits in (1, 2, 3, 4)
    )


def usual_codes(activation: str, bits: int) -> Told:
    """The codes for inputs that are normally distributed around 0 with variance 1."""
    return _told(value_codes(activation_of(activation), bits, Normal(0.0, 1.0)), bits)


def fitted_codes(activation: str, bits: int, x: Tensor, gradient: Tensor) -> Told:
    """The codes for the inputs x of an activation, and the gradient of its output (any shape of as many elements).

    The usual ones where there is nothing to fit: fewer than two different inputs, or values that are not finite.
    """
    step = max(x.numel() // _MOST_SAMPLES, 1)
    inputs = x.detach().flatten()[::step].double().cpu().numpy()
    weights = gradient.detach().flatten()[::step].double().square().cpu().numpy()
    if len(inputs) != len(weights) or not np.isfinite(inputs).all() or not np.isfinite(weights).all():
        return usual_codes(activation, bits)
    edges = np.unique(np.quantile(inputs, np.linspace(0, 1, _BINS + 1))) if len(inputs) else inputs
    if len(edges) < 2 or not weights.sum() > 0:
        return usual_codes(activation, bits)
    counts = np.histogram(inputs, edges, weights=weights / weights.sum())[0]
    return _told(value_codes(activation_of(activation), bits, Histogram(tuple(edges), tuple(counts))), bits)


def _told(codes: StepFunction, bits: int) -> Told:
    """What makes the codes, to seven digits: more would not show in float32."""
    borders, representatives = (
        tuple(float(f"{one:.7g}") for one in told) for told in (codes.borders, codes.representatives)
    )
    levels = tuple(codes.level_of_interval.tolist())
    return {"borders": borders, "level_of_interval": levels, "bits": bits}, {
        "representatives": representatives,
        "bits": bits,
    }
