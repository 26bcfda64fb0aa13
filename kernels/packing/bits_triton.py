"""`bits.py` in Triton: a program packs, unpacks or multiplies groups of eight elements, whose bits fill a byte."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend.elements_triton import computed_dtype, load_groups, numbers_here, store_groups, store_products
from .bits import bytes_of_bits, flat
from .packed_codes_triton import load_codes, over_groups, store_codes


@triton.jit
def _pack(truths, bits, count, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = numbers_here(INT64, BLOCK)
    store_codes(bits, (load_groups(truths, group, count) != 0).to(tl.int32), group, count, 1)


@triton.jit
def _unpack(bits, truths, count, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = numbers_here(INT64, BLOCK)
    store_groups(truths, load_codes(bits, group, count, 1), group, count)


@triton.jit
def _multiply(x, bits, y, count, SCALE: tl.constexpr, COMPUTED: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = numbers_here(INT64, BLOCK)
    kept = load_codes(bits, group, count, 1) != 0
    # a product with 0, so that infinities, NaN and signs of zero are those of a product with a mask
    factors = tl.where(kept, tl.full([BLOCK, 8], SCALE, COMPUTED), tl.full([BLOCK, 8], 0, COMPUTED))
    store_products(x, factors, y, group, count)


def pack(truths: Tensor) -> Tensor:
    """Return `pack_bits`; truths: dense."""
    bits = torch.empty(bytes_of_bits(truths.numel()), dtype=torch.uint8, device=truths.device)
    over_groups(_pack, truths.numel(), truths.device, flat(truths).view(torch.uint8), bits)
    return bits


def unpack(bits: Tensor, truths: Tensor) -> None:
    """Write `unpack_bits` into truths (bool, dense)."""
    over_groups(_unpack, truths.numel(), bits.device, bits, flat(truths).view(torch.uint8))


def multiply(x: Tensor, bits: Tensor, scale: float) -> Tensor:
    """Return `multiply_bits`; the scale is compiled in, once for each probability of dropout."""
    y = torch.empty_like(x)
    over_groups(_multiply, x.numel(), x.device, flat(x), bits, flat(y), SCALE=scale, COMPUTED=computed_dtype(x))
    return y
