"""`few_bit.py` in Triton: a program encodes, decodes or multiplies groups of eight elements, whose codes fill b bytes.

Borders, levels and their factors are tensors on the device, and lie in its first cache. Codes are bit for bit those of
the plain version and of C, the ones that are drawn at random too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend.counter_random import signed_word
from ..backend.counter_random_triton import halves
from ..packing.bits import flat
from ..packing.packed_codes import bytes_of_codes
from ..packing.packed_codes_triton import elements_of, groups_here, load_codes, over_groups, store_codes


@triton.jit
def _intervals(x, borders, border_count, STEPS: tl.constexpr):
    """In which of the intervals between ascending borders elements lie: int32, by halving; STEPS: bits of the count."""
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
    group = groups_here(INT64, BLOCK)
    element = elements_of(group)
    value = tl.load(x + element, mask=element < count, other=0).to(borders.dtype.element_ty)
    place = _intervals(value, borders, border_count, STEPS)
    store_codes(packed, tl.load(levels + place), group, count, BITS)


@triton.jit(do_not_specialize=["state"])
def _round(
    x,
    levels,
    factors,
    packed,
    border_count,
    state,
    count,
    BITS: tl.constexpr,
    STEPS: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = groups_here(INT64, BLOCK)
    element = elements_of(group)
    value = tl.load(x + element, mask=element < count, other=0).to(levels.dtype.element_ty)
    place = _intervals(value, levels + 1, border_count, STEPS)
    above = (value - tl.load(levels + place)) * tl.load(factors + place)
    up = (halves(state, group) < above) | (above != above)
    store_codes(packed, place + up.to(tl.int32), group, count, BITS)


@triton.jit
def _decode(packed, table, y, count, BITS: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = groups_here(INT64, BLOCK)
    element = elements_of(group)
    tl.store(y + element, tl.load(table + load_codes(packed, group, count, BITS)), mask=element < count)


@triton.jit
def _multiply(x, packed, table, y, count, BITS: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = groups_here(INT64, BLOCK)
    element = elements_of(group)
    factor = tl.load(table + load_codes(packed, group, count, BITS))
    product = tl.load(x + element, mask=element < count, other=0).to(factor.dtype) * factor
    tl.store(y + element, product.to(y.dtype.element_ty), mask=element < count)


def placed(device: torch.device, *tables: Tensor) -> list[Tensor]:
    """Tables from the host, which need not be waited for: they are copied before the call returns."""
    return [table.to(device, non_blocking=True) for table in tables]


def encode(x: Tensor, borders: Tensor, levels: Tensor, bits: int) -> Tensor:
    """`encode_plainly`; x: dense. borders: of the type in which x is compared with them."""
    packed = torch.empty(bytes_of_codes(x.numel(), bits), dtype=torch.uint8, device=x.device)
    tensors = (flat(x.detach()), *placed(x.device, borders, levels.to(torch.uint8)), packed, len(borders))
    over_groups(_encode, x.numel(), x.device, *tensors, BITS=bits, STEPS=len(borders).bit_length())
    return packed


def round_at_random(derivative: Tensor, levels: Tensor, factors: Tensor, bits: int, state: int) -> Tensor:
    """`round_plainly`; derivative: dense. levels: at least two."""
    count, device, border_count = derivative.numel(), derivative.device, len(levels) - 2
    packed = torch.empty(bytes_of_codes(count, bits), dtype=torch.uint8, device=device)
    tensors = (flat(derivative.detach()), *placed(device, levels, factors), packed, border_count)
    over_groups(_round, count, device, *tensors, signed_word(state), BITS=bits, STEPS=border_count.bit_length())
    return packed


def decode(code: Tensor, table: Tensor, bits: int, y: Tensor) -> None:
    """Fills y (dense) in with table[code]; table: of y's type, 2^b elements."""
    over_groups(_decode, y.numel(), y.device, code, *placed(y.device, table), flat(y), BITS=bits)


def multiply(gradient: Tensor, code: Tensor, table: Tensor, bits: int) -> Tensor:
    """`multiply_plainly`; gradient: dense. table: of the type in which is multiplied."""
    y = torch.empty_like(gradient.detach())
    tensors = (flat(gradient.detach()), code, *placed(y.device, table), flat(y))
    over_groups(_multiply, y.numel(), y.device, *tensors, BITS=bits)
    return y
