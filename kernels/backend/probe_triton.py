"""A small kernel in Triton, run once on each device to see whether Triton works there."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import launch


@triton.jit
def _square(numbers, squares, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(numbers + place, mask=place < count, other=0)
    tl.store(squares + place, number * number, mask=place < count)


def squares(numbers: Tensor) -> Tensor:
    """Return the squares of integers, computed by at least two programs if there are more than four."""
    results = torch.empty_like(numbers)
    launch(_square, -(-numbers.numel() // 4), numbers.device, numbers, results, numbers.numel(), BLOCK=4)
    return results
