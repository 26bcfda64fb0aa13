"""`bits.py` in Triton: a program packs, unpacks or multiplies the elements of a block of bytes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..backend.triton_launch import launch, needs_int64
from .bits import bytes_of_bits, flat

_BYTES = 256  # of bits, to a program of 4 warps: 16 elements to a thread


@triton.jit
def _pack(truths, bits, count, INT64: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    if INT64:
        block = block.to(tl.int64)
    byte, place = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 8)
    element = byte[:, None] * 8 + place[None, :]
    truth = tl.load(truths + element, mask=element < count, other=0) != 0
    packed = tl.sum(truth.to(tl.int32) << place[None, :], axis=1)
    tl.store(bits + byte, packed.to(tl.uint8), mask=byte * 8 < count)


@triton.jit
def _unpack(bits, truths, count, INT64: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    if INT64:
        block = block.to(tl.int64)
    byte, place = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 8)
    element = byte[:, None] * 8 + place[None, :]
    packed = tl.load(bits + byte, mask=byte * 8 < count, other=0).to(tl.int32)
    truth = (packed[:, None] >> place[None, :]) & 1
    tl.store(truths + element, truth.to(tl.uint8), mask=element < count)


@triton.jit
def _multiply(x, bits, y, count, SCALE: tl.constexpr, COMPUTED: tl.constexpr, INT64: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    if INT64:
        block = block.to(tl.int64)
    byte, place = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 8)
    element = byte[:, None] * 8 + place[None, :]
    inside = element < count
    packed = tl.load(bits + byte, mask=byte * 8 < count, other=0).to(tl.int32)
    kept = ((packed[:, None] >> place[None, :]) & 1) != 0
    # a product with 0, so that infinities, NaN and signs of zero are those of a product with a mask
    factor = tl.where(kept, tl.full([BLOCK, 8], SCALE, COMPUTED), tl.full([BLOCK, 8], 0, COMPUTED))
    product = tl.load(x + element, mask=inside, other=0).to(COMPUTED) * factor
    tl.store(y + element, product.to(y.dtype.element_ty), mask=inside)


def pack(truths: Tensor) -> Tensor:
    """Return `pack_bits`; truths: dense."""
    count = truths.numel()
    bits = torch.empty(bytes_of_bits(count), dtype=torch.uint8, device=truths.device)
    _over_bytes(_pack, count, truths.device, flat(truths).view(torch.uint8), bits)
    return bits


def unpack(bits: Tensor, truths: Tensor) -> None:
    """Write `unpack_bits` into truths (bool, dense)."""
    _over_bytes(_unpack, truths.numel(), bits.device, bits, flat(truths).view(torch.uint8))


def multiply(x: Tensor, bits: Tensor, scale: float) -> Tensor:
    """Return `multiply_bits`; the scale is compiled in, once for each probability of dropout."""
    y = torch.empty_like(x)
    computed = tl.float64 if x.dtype == torch.float64 else tl.float32
    _over_bytes(_multiply, x.numel(), x.device, flat(x), bits, flat(y), SCALE=scale, COMPUTED=computed)
    return y


def _over_bytes(kernel, count: int, device: torch.device, *tensors: Tensor, **constants) -> None:
    programs = -(-bytes_of_bits(count) // _BYTES)
    launch(kernel, programs, device, *tensors, count, **constants, INT64=needs_int64(count), BLOCK=_BYTES)
