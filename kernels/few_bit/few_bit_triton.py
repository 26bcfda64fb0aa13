"""`few_bit.py` in Triton: a program encodes, decodes or multiplies groups of eight elements, whose codes fill b bytes.

Borders and levels are tensors on the device, and stay in its first cache. Codes are bit for bit those of the plain
version and of C.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend.elements_triton import load_groups, numbers_here, store_groups, store_products
from ..packing.bits import flat
from ..packing.packed_codes import bytes_of_codes
from ..packing.packed_codes_triton import load_codes, over_groups, store_codes


@triton.jit
def _intervals(x, borders, border_count, STEPS: tl.constexpr):
    """Return the numbers of the intervals between ascending borders that elements lie in: int32, by halving.

    STEPS: bits of the number of borders.
    """
    place = tl.zeros(x.shape, tl.int32)
    for step in tl.static_range(STEPS):
        beyond = place + (1 << (STEPS - 1 - step))
        border = tl.load(borders + beyond - 1, mask=beyond <= border_count, other=0)
        place = tl.where((beyond <= border_count) & ((x >= border) | (x != x)), beyond, place)
    return place


@triton.jit
def _encode(
    x,
    borders,
    levels,
    packed,
    border_count,
    count,
    BITS: tl.constexpr,
    STEPS: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = numbers_here(INT64, BLOCK)
    value = load_groups(x, group, count).to(borders.dtype.element_ty)
    place = _intervals(value, borders, border_count, STEPS)
    store_codes(packed, tl.load(levels + place), group, count, BITS)


@triton.jit
def _decode(packed, table, y, count, BITS: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = numbers_here(INT64, BLOCK)
    store_groups(y, tl.load(table + load_codes(packed, group, count, BITS)), group, count)


@triton.jit
def _multiply(x, packed, table, y, count, BITS: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = numbers_here(INT64, BLOCK)
    store_products(x, tl.load(table + load_codes(packed, group, count, BITS)), y, group, count)


def placed(device: torch.device, *tables: Tensor) -> list[Tensor]:
    """Return tables from the host on the device, without waiting: they are copied before the call returns."""
    return [table.to(device, non_blocking=True) for table in tables]


def encode(x: Tensor, borders: Tensor, levels: Tensor, bits: int) -> Tensor:
    """Return `encode_plainly`; x: dense. borders: of the type in which x is compared with them."""
    packed = torch.empty(bytes_of_codes(x.numel(), bits), dtype=torch.uint8, device=x.device)
    tensors = (flat(x.detach()), *placed(x.device, borders, levels.to(torch.uint8)), packed, len(borders))
    over_groups(_encode, x.numel(), x.device, *tensors, BITS=bits, STEPS=len(borders).bit_length())
    return packed


def decode(code: Tensor, table: Tensor, bits: int, y: Tensor) -> None:
    """Fill y (dense) with table[code]; table: of y's type, 2^b elements."""
    over_groups(_decode, y.numel(), y.device, code, *placed(y.device, table), flat(y), BITS=bits)


def multiply(gradient: Tensor, code: Tensor, table: Tensor, bits: int) -> Tensor:
    """Return `multiply_plainly`; gradient: dense. table: of the type in which products are taken."""
    y = torch.empty_like(gradient.detach())
    tensors = (flat(gradient.detach()), code, *placed(y.device, table), flat(y))
    over_groups(_multiply, y.numel(), y.device, *tensors, BITS=bits)
    return y
