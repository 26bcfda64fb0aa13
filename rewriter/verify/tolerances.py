"""Relative errors of what a step gave, and how large rounding may make them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Told = Mapping[str, Tensor | None]

GRADIENT = "gradient of "  # what the names of gradients begin with
ALL_GRADIENTS = "all gradients together"

# Relative errors of all gradients together. Measured with "rounding" on 16 small models (gpt2, llama, bert, t5, vit,
# whisper, mamba, ...): 1e-7 to 3e-7 in float32, 1.1e-6 on resnet; up to 1e-2 in bfloat16. A kernel that is wrong is off
# by far more: eager itself lies 2e-7 to 5e-5 from float64.
_LIMITS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# One parameter alone may be off by more: at most 4 times as much was measured, 4e-6 in float32.
ALONE = 4.0
# A gradient that cancels to nothing (of attention's key biases) has the rounding of its terms. It is compared with
# gradients a hundredth as large as the average element, so what is wrong passes only if 4e-7 of the average, or less.
_SMALL = 1e-2
# What codes add to the gradient is predicted within a quarter of its square; it changes with the parameters too.
_NOISE_SLACK = 1.5


@dataclass(frozen=True)
class Error:
    """The relative error of something, ||x^ - x|| / ||x||, and the limit it is held against."""

    what: str
    relative: float
    limit: float

    @property
    def is_within(self) -> bool:
        """Whether it is no larger than its limit; NaN is not."""
        return self.relative <= self.limit


def limit_of(dtypes: Iterable[torch.dtype]) -> float:
    """The relative error that rounding may cause in all gradients together: that of the coarsest dtype computed in.

    Raises ValueError for a dtype of which no error has been measured.
    """
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    if coarsest not in _LIMITS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _LIMITS)
        raise ValueError(f"no limit is known for rounding in {coarsest}; it is for {known}: use fidelity='bitwise'")
    return _LIMITS[coarsest]


def errors_of(first: Told, second: Told, limit: float, noise: float = 0.0) -> list[Error]:
    """The relative errors of `second`, each with its limit; infinite where dtypes, shapes or exact values differ.

    limit: of all gradients together and of each output and buffer; a gradient alone may be off by 4 times that, a
    nearly vanishing one by that share of a hundredth of the average. What is not floating-point must be the same.
    noise: the distance by which approximate codes are predicted to move all gradients together, which may be half as
    large again; it is not told which gradient has how much of it, so none is judged alone.
    """
    gradients = {what: one for what, one in first.items() if what.startswith(GRADIENT) and one is not None}
    average = _norm(gradients.values()) / math.sqrt(max(sum(one.numel() for one in gradients.values()), 1))
    errors, squares = [], 0.0
    for what in dict.fromkeys((*first, *second)):
        one, other = first.get(what), second.get(what)
        off = _distance(one, other)
        if what.startswith(GRADIENT):
            least = 0.0 if one is None else _SMALL * average * math.sqrt(one.numel())
            if not noise:
                errors.append(Error(what, _share(off, max(_norm([one]), least)), ALONE * limit))
            squares += off * off
        else:
            errors.append(Error(what, _share(off, _norm([one])), limit))
    whole = _norm(gradients.values())
    in_all = Error(ALL_GRADIENTS, _share(math.sqrt(squares), whole), limit + _share(_NOISE_SLACK * noise, whole))
    return [*errors, in_all]


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal values, with NaN equal to NaN."""
    return torch.equal(one, other) or bool(_same(one, other).all())


def _same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | ((one != one) & (other != other))


def _distance(one: Tensor | None, other: Tensor | None) -> float:
    """||other - one||; infinite where they cannot be subtracted, or must be the same and are not."""
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf
    if same_bits(one, other):
        return 0.0
    # infinities and NaN that are the same in both are no distance
    return float((widest(other) - widest(one)).masked_fill(_same(one, other), 0).norm()) if _rounds(one) else math.inf


def _norm(tensors: Iterable[Tensor | None]) -> float:
    """The norm of all finite elements of what rounds."""
    wide = (widest(one) for one in tensors if one is not None and _rounds(one))
    return math.hypot(*(float(one.masked_fill(~one.isfinite(), 0).norm()) for one in wide))


def _rounds(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def widest(tensor: Tensor) -> Tensor:
    """In float64, or complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _share(part: float, whole: float) -> float:
    """part / whole, 0 where there is no part."""
    return 0.0 if part == 0 else part / whole if whole > 0 else math.inf
