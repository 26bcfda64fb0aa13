"""Values that only an activation's backward reads, kept as the number of a level of its derivative: forward stays
exact.

Kept: ceil(n b / 8) bytes at b bits, where eager keeps the input or the output, 4 n. Decoding gives, for each level, a
value at which the derivative is that level, so that the activation's own backward multiplies with the level. Where the
gradient lies in memory as the value did, it is multiplied with the code's levels, and nothing is decoded.

The levels are the best ones for the values of f' ("Few-Bit Backward", arXiv 2202.00441, and `value_codes`) at the
present inputs. Each is weighted by the square of the gradient g that f' is multiplied with. Where inputs are kept, it
is also weighted by what the error e = level - f'(x) does to the gradient of the weights w that made x = w·y. Along w,
this is the sum over samples of g e x, whose terms do not cancel where gradients of samples agree. By Cauchy and Schwarz
its square is at most the sum of (g e x)², times the number of agreeing samples. So E g² (1 + x² / E x²) e² is
minimized.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from ..codec import CodecArguments, FittedCodec
from .derivative_moments import slope_moments
from .few_bit import decode_levels, encode_by_borders, multiply_levels
from .input_weights import Uniform
from .sample_levels import levels_of_samples
from .saved_derivatives import SavedDerivative
from .step_functions import StepFunction, by_nearest_level

BITS = (1, 2, 3, 4, 6, 8)
_MOST_SAMPLES = 1 << 17
_USUAL_SAMPLES = 1 << 12


@cache
def derivative_codecs(derivative: SavedDerivative) -> tuple[FittedCodec, ...]:
    """Return codecs for what only the backward of an activation reads: levels of its derivative in 1 to 8 bits.

    There are none where its parameters leave it no levels.
    """
    if not derivative.has_levels:
        return ()
    return tuple(
        FittedCodec(
            f"{bits}-bit {derivative.name}'",
            encode_by_borders,
            decode_levels,
            (torch.float32, torch.bfloat16, torch.float16),
            "approximate",
            needs_dtype=True,
            arguments=usual_codes(derivative, bits),
            fit=partial(fitted_codes, derivative, bits),
            family=f"{derivative.name}'",
            multiply=multiply_levels,
        )
        for bits in BITS
    )


def usual_codes(derivative: SavedDerivative, bits: int) -> CodecArguments:
    """Return the codes for unseen values: for normally distributed inputs, or outputs anywhere in their range.

    They are arguments of `few_bit.encode_by_borders` and `few_bit.decode_levels`.
    """
    saved = np.linspace(*derivative.usual_weight.support, _USUAL_SAMPLES)
    return _codes(derivative, bits, saved, derivative.usual_weight.density(saved))


def fitted_codes(derivative: SavedDerivative, bits: int, saved: Tensor, gradient: Tensor) -> CodecArguments:
    """Return the codes for the saved values of an activation, and the gradient of its output (any shape, as many
    elements).

    They are the usual ones where there is nothing to fit: fewer than two different values, or some that are not finite.
    """
    step = max(saved.numel() // _MOST_SAMPLES, 1)
    values = saved.detach().flatten()[::step].double().cpu().numpy()
    weights = gradient.detach().flatten()[::step].double().square().cpu().numpy()
    if len(values) != len(weights) or not np.isfinite(values).all() or not np.isfinite(weights).all():
        return usual_codes(derivative, bits)
    if not len(values) or not values.max() - values.min() > 1e-6 * np.abs(values).max() or not weights.sum() > 0:
        return usual_codes(derivative, bits)
    if derivative.saved == "input":
        weights *= 1 + values**2 / np.mean(values**2)
    return _codes(derivative, bits, values, weights)


def _codes(derivative: SavedDerivative, bits: int, values: np.ndarray, weights: np.ndarray) -> CodecArguments:
    levels = levels_of_samples(derivative.activation.slopes(values), weights, 1 << bits)
    moments = slope_moments(derivative.activation, Uniform(float(values.min()), float(values.max())))
    codes = by_nearest_level(moments, levels)
    reached = derivative.activation.slopes(codes.representatives)
    if np.abs(reached - levels).max() > 1e-6 * np.ptp(reached):  # f' jumps over a level, and backward cannot take it
        codes = by_nearest_level(moments, np.unique(reached))
    return _codec_arguments(codes, bits)


def _codec_arguments(codes: StepFunction, bits: int) -> CodecArguments:
    """Return the arguments that make the codes, to seven digits: more would not show in float32.

    Intervals that become empty by rounding are left out.
    """
    borders, representatives = (
        np.array([float(f"{number:.7g}") for number in numbers]) for numbers in (codes.borders, codes.representatives)
    )
    empty = 1 + np.flatnonzero(np.diff(borders.astype(np.float32)) <= 0)
    levels = np.delete(codes.level_of_interval, empty)
    return {
        "borders": tuple(np.delete(borders, empty).tolist()),
        "level_of_interval": tuple(levels.tolist()),
        "bits": bits,
    }, {
        "representatives": tuple(representatives.tolist()),
        "bits": bits,
    }
