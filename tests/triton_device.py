"""Where cases for kernels in Triton run, on a GPU or through Triton's interpreter, and how they compare tensors."""

import os

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """That two tensors are equal, signs of zero included; not-a-number may have any bits."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    there = ~expected.isnan()
    assert torch.equal(found.isnan(), ~there)
    word = WORDS[found.dtype.itemsize]
    assert torch.equal(found[there].view(word), expected[there].view(word))


def randn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(size, dtype=torch.float64).to(DEVICE, dtype)


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    difference, size = (found.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / size) if size > 0 else float(difference)
