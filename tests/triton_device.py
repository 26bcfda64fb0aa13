"""The device of cases for kernels in Triton, a GPU or Triton's interpreter, and comparisons of tensors."""

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Assert that two tensors are equal, signs of zero included; NaN may have any bits."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    is_number = ~expected.isnan()
    assert torch.equal(actual.isnan(), ~is_number)
    word = WORDS[actual.dtype.itemsize]
    assert torch.equal(actual[is_number].view(word), expected[is_number].view(word))


def randn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the same numbers on every device."""
    return torch.randn(size, dtype=torch.float64).to(DEVICE, dtype)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Return ‖actual - expected‖ / ‖expected‖."""
    difference, size = (actual.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / size) if size > 0 else float(difference)
