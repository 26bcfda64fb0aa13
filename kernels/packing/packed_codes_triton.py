"""`packed_codes.py` in Triton: a program packs or unpacks groups of eight codes, which fill b bytes.

The other kernels that make or read such codes use the functions here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend.elements_triton import elements_of, load_groups, numbers_here, store_groups
from ..backend.triton_launch import launch, needs_int64
from .bits import flat
from .packed_codes import bytes_of_codes

_GROUPS = 256  # of eight codes, to a program of 4 warps: 16 codes to a thread


@triton.jit
def _numbers(BITS: tl.constexpr):
    """Return the bytes of a group's codes, counted from its first, rounded up to a power of two: [1, bytes]."""
    return tl.arange(0, triton.next_power_of_2(BITS))[None, :]


@triton.constexpr_function
def _word(bits):
    """Return the integer type that holds the eight codes of a group."""
    return tl.int32 if bits <= 4 else tl.int64


@triton.jit
def _held(group, count, BITS: tl.constexpr):
    """Return which of these bytes hold codes of elements before `count`: [groups, bytes]."""
    return _numbers(BITS) * 8 < tl.minimum(count - group * 8, 8)[:, None] * BITS


@triton.jit
def store_codes(packed, codes, group, count, BITS: tl.constexpr):
    """Pack codes, integers [groups, 8] of BITS bits; those behind `count` elements are left out."""
    number, shift = _numbers(BITS), (tl.arange(0, 8) * BITS)[None, :]
    word = tl.sum(tl.where(elements_of(group) < count, codes, 0).to(_word(BITS)) << shift, axis=1)
    byte = ((word[:, None] >> number * 8) & 255).to(tl.uint8)
    tl.store(packed + (group[:, None] * BITS + number), byte, mask=_held(group, count, BITS))


@triton.jit
def load_codes(packed, group, count, BITS: tl.constexpr):
    """Return the codes that `store_codes` packed: int32 [groups, 8]."""
    number, shift = _numbers(BITS), (tl.arange(0, 8) * BITS)[None, :]
    byte = tl.load(packed + (group[:, None] * BITS + number), mask=_held(group, count, BITS), other=0)
    word = tl.sum(byte.to(_word(BITS)) << number * 8, axis=1)
    return ((word[:, None] >> shift) & ((1 << BITS) - 1)).to(tl.int32)


@triton.jit
def _pack(codes, packed, count, BITS: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = numbers_here(INT64, BLOCK)
    store_codes(packed, load_groups(codes, group, count) & ((1 << BITS) - 1), group, count, BITS)


@triton.jit
def _unpack(packed, codes, count, BITS: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    group = numbers_here(INT64, BLOCK)
    store_groups(codes, load_codes(packed, group, count, BITS), group, count)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return `pack_codes`; codes: uint8, dense."""
    packed = torch.empty(bytes_of_codes(codes.numel(), bits), dtype=torch.uint8, device=codes.device)
    over_groups(_pack, codes.numel(), codes.device, flat(codes), packed, BITS=bits)
    return packed


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return `unpack_codes`."""
    codes = torch.empty(count, dtype=torch.uint8, device=packed.device)
    over_groups(_unpack, count, packed.device, packed, codes, BITS=bits)
    return codes


def over_groups(kernel, count: int, device: torch.device, *arguments, block: int = _GROUPS, **constants) -> None:
    """Run a kernel over all groups of eight of `count` elements; block: groups to a program."""
    launch(
        kernel, -(-count // (8 * block)), device, *arguments, count, **constants, INT64=needs_int64(count), BLOCK=block
    )
