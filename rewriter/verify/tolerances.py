"""Computes relative errors of a step's results, and the limits that rounding sets for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

StepResults = Mapping[str, Tensor | None]

GRADIENT = "gradient of "  # prefix of the names of gradients
ALL_GRADIENTS = "all gradients together"

# Relative errors of all gradients together. Measured with "rounding" on 16 small models (gpt2, llama, bert, t5, vit,
# whisper, mamba, ...): 1e-7 to 3e-7 in float32, 1.1e-6 on resnet; up to 1e-2 in bfloat16. A wrong kernel deviates by
# far more: eager itself lies 2e-7 to 5e-5 from float64.
_LIMITS = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# One parameter alone may deviate more: at most 4 times as much was measured, 4e-6 in float32.
ALONE = 4.0
# A gradient that cancels to nothing (of attention's key biases) has the rounding of its terms. It is compared with
# gradients a hundredth as large as the average element, so an error passes only if it is 4e-7 of the average or less.
_SMALL = 1e-2
# The noise that codes add to the gradient is predicted within a quarter of its square; it changes with parameters too.
_NOISE_SLACK = 1.5


@dataclass(frozen=True)
class Deviation:
    """The relative error of a result, ||x^ - x|| / ||x||.

    what: the name of the result.
    relative: the relative error.
    limit: the largest relative error allowed.
    """

    what: str
    relative: float
    limit: float

    @property
    def is_within(self) -> bool:
        """Return whether the error is at most its limit; NaN is not."""
        return self.relative <= self.limit


def limit_of(dtypes: Iterable[torch.dtype]) -> float:
    """Return the relative error that rounding may cause in all gradients together: the one of the coarsest dtype.

    Raises ValueError for a dtype of which no error has been measured.
    """
    coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
    if coarsest not in _LIMITS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _LIMITS)
        raise ValueError(f"no limit is known for rounding in {coarsest}, only in {known}: use fidelity='bitwise'")
    return _LIMITS[coarsest]


def deviations_of(first: StepResults, second: StepResults, limit: float, noise: float = 0.0) -> list[Deviation]:
    """Return the relative errors of `second`, each with its limit; infinite where dtypes, shapes or exact values
    differ.

    Results that are not floating-point must be the same.
    limit: the limit of all gradients together, and of each output and buffer. A single gradient may deviate by 4 times
        that, a nearly vanishing one by that share of a hundredth of the average.
    noise: the distance by which approximate codes are predicted to move all gradients together. The distance may be
        half as large again. Its split among gradients is not known, so none is judged alone.
    """
    gradients = {what: t for what, t in first.items() if what.startswith(GRADIENT) and t is not None}
    average = _norm(gradients.values()) / math.sqrt(max(sum(gradient.numel() for gradient in gradients.values()), 1))
    deviations, squares = [], 0.0
    for what in dict.fromkeys((*first, *second)):
        left, right = first.get(what), second.get(what)
        distance = _distance(left, right)
        if what.startswith(GRADIENT):
            smallest_norm = 0.0 if left is None else _SMALL * average * math.sqrt(left.numel())
            if not noise:
                deviations.append(Deviation(what, _share(distance, max(_norm([left]), smallest_norm)), ALONE * limit))
            squares += distance * distance
        else:
            deviations.append(Deviation(what, _share(distance, _norm([left])), limit))
    whole = _norm(gradients.values())
    in_all = Deviation(ALL_GRADIENTS, _share(math.sqrt(squares), whole), limit + _share(_NOISE_SLACK * noise, whole))
    return [*deviations, in_all]


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Return whether values are equal, with NaN equal to NaN."""
    return torch.equal(left, right) or bool(_same(left, right).all())


def _same(left: Tensor, right: Tensor) -> Tensor:
    return (left == right) | ((left != left) & (right != right))


def _distance(left: Tensor | None, right: Tensor | None) -> float:
    """Return ||right - left||; infinite if they cannot be subtracted, or must be the same and are not."""
    if left is None or right is None:
        return 0.0 if left is right else math.inf
    if left.shape != right.shape or left.dtype != right.dtype:
        return math.inf
    if same_bits(left, right):
        return 0.0
    # infinities and NaN that are the same in both are no distance
    return (
        float((widest(right) - widest(left)).masked_fill(_same(left, right), 0).norm()) if _rounds(left) else math.inf
    )


def _norm(tensors: Iterable[Tensor | None]) -> float:
    """Return the norm of all finite elements of the tensors that round."""
    wide = (widest(tensor) for tensor in tensors if tensor is not None and _rounds(tensor))
    return math.hypot(*(float(tensor.masked_fill(~tensor.isfinite(), 0).norm()) for tensor in wide))


def _rounds(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def widest(tensor: Tensor) -> Tensor:
    """Return the tensor in float64, or complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _share(part: float, whole: float) -> float:
    """Return part / whole, or 0 if part is 0."""
    return 0.0 if part == 0 else part / whole if whole > 0 else math.inf
