"""`threshold_bits.py` and `threshold_classes.py` in Triton: groups of eight elements to planes of bits, and back.

No truth values in bytes are made in between.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend.elements_triton import computed_dtype, load_groups, numbers_here, store_groups
from ..few_bit.few_bit_triton import decode, placed
from ..packing.bits import bytes_of_bits, flat
from ..packing.packed_codes_triton import load_codes, over_groups, store_codes
from .threshold_bits import Thresholds


@triton.jit
def _pack_inside(
    x,
    bits,
    count,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    OPEN: tl.constexpr,
    NAN_INSIDE: tl.constexpr,
    COMPUTED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = numbers_here(INT64, BLOCK)
    value = load_groups(x, group, count).to(COMPUTED)
    low, high = tl.full([BLOCK, 8], LOW, COMPUTED), tl.full([BLOCK, 8], HIGH, COMPUTED)
    inside = ((value > low) & (value < high)) if OPEN else ((value >= low) & (value <= high))
    if NAN_INSIDE:
        inside |= value != value
    store_codes(bits, inside.to(tl.int32), group, count, 1)


@triton.jit
def _pack_classes(
    x,
    planes,
    plane_bytes,
    count,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    COMPUTED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = numbers_here(INT64, BLOCK)
    value = load_groups(x, group, count).to(COMPUTED)
    not_below, not_above = value >= tl.full([BLOCK, 8], LOW, COMPUTED), value <= tl.full([BLOCK, 8], HIGH, COMPUTED)
    store_codes(planes, not_below.to(tl.int32), group, count, 1)
    store_codes(planes + plane_bytes, not_above.to(tl.int32), group, count, 1)


@triton.jit
def _unpack_classes(planes, sides, y, plane_bytes, count, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = numbers_here(INT64, BLOCK)
    side = load_codes(planes, group, count, 1) + 2 * load_codes(planes + plane_bytes, group, count, 1)
    store_groups(y, tl.load(sides + side), group, count)


def pack_inside(x: Tensor, thresholds: Thresholds) -> Tensor:
    """Return `pack_inside` with NaN on the side that the thresholds say; x: dense. The thresholds are compiled in."""
    bits = torch.empty(bytes_of_bits(x.numel()), dtype=torch.uint8, device=x.device)
    constants = {
        "LOW": thresholds.low,
        "HIGH": thresholds.high,
        "OPEN": thresholds.is_open,
        "NAN_INSIDE": thresholds.nan_inside,
    }
    over_groups(_pack_inside, x.numel(), x.device, flat(x), bits, **constants, COMPUTED=computed_dtype(x))
    return bits


def unpack_inside(bits: Tensor, sides: Tensor, y: Tensor) -> None:
    """Fill y (dense) with sides[1] where a bit is 1, and sides[0] where it is not; sides: of y's type."""
    decode(bits, sides, 1, y)


def pack_classes(x: Tensor, low: float, high: float) -> Tensor:
    """Return `pack_classes`; x: dense. The thresholds are compiled in."""
    plane_bytes = bytes_of_bits(x.numel())
    planes = torch.empty(2 * plane_bytes, dtype=torch.uint8, device=x.device)
    tensors = (flat(x), planes, plane_bytes)
    over_groups(_pack_classes, x.numel(), x.device, *tensors, LOW=low, HIGH=high, COMPUTED=computed_dtype(x))
    return planes


def unpack_classes(planes: Tensor, sides: Tensor, y: Tensor) -> None:
    """Fill y (dense) with sides[b], b being 1 for not below plus 2 for not above; sides: of y's type."""
    tensors = (planes, *placed(y.device, sides), flat(y), bytes_of_bits(y.numel()))
    over_groups(_unpack_classes, y.numel(), y.device, *tensors)
