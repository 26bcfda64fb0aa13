"""Functions in Triton for kernels of several folders: which elements a program works on, how it reads and writes them.

Bits and codes of few bits lie in memory by groups of eight elements, so most kernels take whole groups.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def numbers_here(INT64: tl.constexpr, BLOCK: tl.constexpr):
    """Return the numbers of the elements, or of the groups of eight, that this program works on: [BLOCK]."""
    block = tl.program_id(0)
    if INT64:
        block = block.to(tl.int64)
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def elements_of(group):
    """Return the elements of groups of eight: [groups, 8]."""
    return group[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def load_groups(x, group, count):
    """Return the elements of groups of eight: [groups, 8], with 0 behind `count` elements."""
    element = elements_of(group)
    return tl.load(x + element, mask=element < count, other=0)


@triton.jit
def store_groups(y, values, group, count):
    """Write the elements of groups of eight, [groups, 8], in y's type; nothing behind `count` elements."""
    element = elements_of(group)
    tl.store(y + element, values.to(y.dtype.element_ty), mask=element < count)


@triton.jit
def store_products(x, factors, y, group, count):
    """Write x times factors, [groups, 8], computed in the factors' type and rounded once to y's."""
    store_groups(y, load_groups(x, group, count).to(factors.dtype) * factors, group, count)


def computed_dtype(tensor: Tensor) -> tl.dtype:
    """Return the type in which elements of a floating-point tensor are computed: float32 at least."""
    return tl.float64 if tensor.dtype == torch.float64 else tl.float32
