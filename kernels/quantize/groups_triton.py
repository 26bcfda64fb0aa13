"""`groups.py` in Triton: a program reads whole groups once, transforms, measures, rounds and packs them.

Codes and decoded tensors are bit for bit those of the plain version and of C: quotients are rounded as IEEE has it, and
products are not joined with sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend.counter_random import signed_word, state_of
from ..backend.counter_random_triton import halves
from ..backend.elements_triton import load_groups, numbers_here, store_groups
from ..packing.bits import flat
from ..packing.packed_codes_triton import load_codes, over_groups, store_codes
from .hadamard import state_of_signs
from .hadamard_triton import spread
from .plain_groups import bytes_of_groups

_ELEMENTS = 2048  # of a program, where a group has no more


@triton.jit
def _word(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def _offsets(low):
    """Return the lowest elements of groups rounded down to bfloat16: float32."""
    word = _word(low)
    away = tl.where((word < 0) & ((word & 0xFFFF) != 0), 0x10000, 0)
    return ((word & -0x10000) + away).to(tl.float32, bitcast=True) + 0.0


@triton.jit
def _scales(width, BITS: tl.constexpr):
    """Return the distances between the levels of groups of some widths, rounded up to bfloat16: float32."""
    levels = tl.full(width.shape, (1 << BITS) - 1, tl.float32)  # pyright: ignore[reportOperatorIssue]
    word = _word(tl.div_rn(width, levels))
    word = tl.where((width > 0) & (word == 0), 1, word)
    return ((word + 0xFFFF) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def _on_levels(left, inside):
    """Return whether groups err less without subtraction.

    left: fractions of a level above a level, times 2^24; 0 outside.
    """
    part = left.to(tl.int32) >> 16
    variance = tl.sum(part * (256 - part), axis=1, keep_dims=True)
    return 12 * variance < 65536 * tl.sum(inside.to(tl.int32), axis=1, keep_dims=True)


@triton.jit
def _store_parameter(code, place, number, held):
    """Write the upper 16 bits of float32 to bytes of a code."""
    word = _word(number)
    tl.store(code + place, (word >> 16 & 255).to(tl.uint8), mask=held)
    tl.store(code + place + 1, (word >> 24 & 255).to(tl.uint8), mask=held)


@triton.jit
def _load_parameter(code, place, held):
    """Return a parameter read by bytes, since a code within another tensor may begin at an odd one."""
    lower = tl.load(code + place, mask=held, other=0).to(tl.int32)
    upper = tl.load(code + place + 1, mask=held, other=0).to(tl.int32)
    return (lower << 16 | upper << 24).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["state", "signs"])
def _encode(
    x,
    code,
    state,
    signs,
    count,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    TRANSFORMED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    eight = numbers_here(INT64, BLOCK)
    value = load_groups(x, eight, count).to(tl.float32)
    if TRANSFORMED:
        value = spread(value, eight, count, signs, False)
    value = tl.reshape(value, [BLOCK * 8 // GROUP, GROUP])
    group = (tl.program_id(0).to(eight.dtype) * (BLOCK * 8 // GROUP) + tl.arange(0, BLOCK * 8 // GROUP))[:, None]
    inside = group * GROUP + tl.arange(0, GROUP)[None, :] < count
    low = tl.min(tl.where(inside, value, float("inf")), axis=1, keep_dims=True)
    high = tl.max(tl.where(inside, value, float("-inf")), axis=1, keep_dims=True)
    bad = tl.max((inside & ((_word(value) & 0x7F800000) == 0x7F800000)).to(tl.int32), axis=1, keep_dims=True)
    offset = _offsets(low)
    scale = _scales(high - offset + 0.0, BITS)
    top, bottom = offset + scale * ((1 << BITS) - 0.5), offset - scale * 0.5
    fit = (bad == 0) & (tl.abs(top) < float("inf")) & (tl.abs(bottom) < float("inf"))
    above = tl.div_rn(value - offset, tl.broadcast_to(tl.where(scale > 0, scale, 1.0), value.shape))
    above = tl.where(inside & fit, above, 0.0)
    level = above.to(tl.int32)
    left = (above - level.to(tl.float32)) * 16777216.0
    number = tl.full([BLOCK, 8], 8388607.5, tl.float32)  # up from a half on
    if STOCHASTIC:
        number = halves(state, eight)
        scale = tl.where((scale > 0) & _on_levels(left, inside), -scale, scale)
    level += (tl.reshape(number, left.shape) < left).to(tl.int32)
    level = tl.reshape(tl.minimum(level, (1 << BITS) - 1), [BLOCK, 8])
    store_codes(code + tl.cdiv(count, GROUP) * 4, level, eight, count, BITS)
    place, held = group * 4, group * GROUP < count
    _store_parameter(code, place, tl.where(fit, offset, float("nan")), held)
    _store_parameter(code, place + 2, tl.where(fit, scale, float("nan")), held)


@triton.jit(do_not_specialize=["state", "signs"])
def _decode(
    x,
    code,
    state,
    signs,
    count,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    TRANSFORMED: tl.constexpr,
    MOST: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    eight = numbers_here(INT64, BLOCK)
    place, held = eight // (GROUP // 8) * 4, eight * 8 < count
    offset, scale = _load_parameter(code, place, held), _load_parameter(code, place + 2, held)
    step = load_codes(code + tl.cdiv(count, GROUP) * 4, eight, count, BITS).to(tl.float32)
    if STOCHASTIC:
        taken = halves(state, eight) * (2.0**-24) - 0.5
        step += tl.where((_word(scale) < 0)[:, None], 0.0, taken)
    value = offset[:, None] + step * tl.abs(scale)[:, None]
    if TRANSFORMED:
        value = spread(value, eight, count, signs, True)
    if MOST > 0:  # NaN stays
        value = tl.where(value > MOST, MOST, tl.where(value < -MOST, -MOST, value))
    store_groups(x, value, eight, count)


def encode(x: Tensor, bits: int, group: int, stochastic: bool, hadamard: bool, seed: int) -> Tensor:
    """Return `encode_plainly`; x: dense."""
    code = torch.empty(bytes_of_groups(x.numel(), bits, group), dtype=torch.uint8, device=x.device)
    _over_groups(_encode, flat(x.detach()), code, bits, group, stochastic, hadamard, seed)
    return code


def decode(code: Tensor, x: Tensor, bits: int, group: int, stochastic: bool, hadamard: bool, seed: int) -> None:
    """Run `decode_plainly`."""
    most = torch.finfo(x.dtype).max
    limit = most if most < torch.finfo(torch.float32).max else 0.0
    _over_groups(_decode, x, code, bits, group, stochastic, hadamard, seed, MOST=limit)


def _over_groups(
    kernel,
    x: Tensor,
    code: Tensor,
    bits: int,
    group: int,
    stochastic: bool,
    hadamard: bool,
    seed: int,
    **constants: float,
) -> None:
    elements = max(_ELEMENTS, group)
    over_groups(
        kernel,
        len(x),
        x.device,
        *(x, code, signed_word(state_of(seed)), signed_word(state_of_signs(seed))),
        BITS=bits,
        GROUP=group,
        STOCHASTIC=stochastic,
        TRANSFORMED=hadamard,
        **constants,
        block=elements // 8,
        num_warps=elements // 512,
        enable_fp_fusion=False,
    )
