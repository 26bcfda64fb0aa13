"""Truth values in one bit each: packing, unpacking, and products with a mask that is kept in bits.

Kept: ceil(n / 8) bytes for n truth values, where eager keeps n bytes, or 4 n for the masks of dropout on a CPU. Bit i
lies in byte i // 8 with the weight 2^(i % 8).
"""

from __future__ import annotations

from ctypes import c_double, c_int64, c_void_p

import torch
from torch import Tensor

from ..backend.library import define
from ..backend.native import native, pointer
from ..backend.planned_layouts import laid_out
from ..backend.triton_dispatch import triton_version

SOURCE = r"""
#include <stdint.h>
#include <string.h>

/* 8 truth values of a byte each (0 or 1), to 8 bits */
static inline uint8_t packed(const uint8_t *truths) {
    uint64_t word;
    memcpy(&word, truths, 8);
    return (uint8_t)((word * 0x0102040810204080ull) >> 56);
}

void pack(const uint8_t *truths, uint8_t *bits, int64_t count) {
    int64_t whole = count / 8;
    #pragma omp parallel for schedule(static) if (whole > 16384)
    for (int64_t i = 0; i < whole; i++) bits[i] = packed(truths + 8 * i);
    if (count % 8) {
        uint8_t last[8] = {0};
        memcpy(last, truths + 8 * whole, count % 8);
        bits[whole] = packed(last);
    }
}

void unpack(const uint8_t *bits, uint8_t *truths, int64_t count) {
    #pragma omp parallel for schedule(static) if (count > 131072)
    for (int64_t i = 0; i < count / 8; i++)
        for (int k = 0; k < 8; k++) truths[8 * i + k] = (bits[i] >> k) & 1;
    for (int64_t i = count / 8 * 8; i < count; i++) truths[i] = (bits[i / 8] >> (i % 8)) & 1;
}

/* x * (bit ? scale : 0): a product, so that infinities, NaN and signs of zero are those of a product with a mask */
#define MULTIPLY(name, number)                                                                    \
    void name(const number *x, const uint8_t *bits, double scale, number *y, int64_t count) {     \
        const number factors[2] = {0, (number)scale};                                             \
        _Pragma("omp parallel for schedule(static) if (count > 32768)")                           \
        for (int64_t i = 0; i < count / 8; i++) {                                                 \
            number mask[8];                                                                       \
            for (int k = 0; k < 8; k++) mask[k] = ((bits[i] >> k) & 1) ? factors[1] : factors[0]; \
            for (int k = 0; k < 8; k++) y[8 * i + k] = x[8 * i + k] * mask[k];                    \
        }                                                                                         \
        for (int64_t i = count / 8 * 8; i < count; i++)                                           \
            y[i] = x[i] * factors[(bits[i / 8] >> (i % 8)) & 1];                                  \
    }
MULTIPLY(multiply_float, float)
MULTIPLY(multiply_double, double)
"""

_POINTERS = (c_void_p, c_void_p, c_int64)
_PRODUCT = (c_void_p, c_void_p, c_double, c_void_p, c_int64)
_PRODUCTS = {torch.float32: "multiply_float", torch.float64: "multiply_double"}
_CHUNK = 1 << 20  # elements that the plain versions unpack at once


def bytes_of_bits(count: int) -> int:
    """Return the bytes of a number of truth values in bits."""
    return -(-count // 8)


def dense(tensor: Tensor) -> bool:
    """Return whether a tensor's elements fill its stretch of memory, in any order."""
    if not tensor.numel():
        return True
    size = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and stride != size:
            return False
        size *= length
    return True


def flat(tensor: Tensor) -> Tensor:
    """Return a dense tensor's elements in the order of memory, as a view."""
    return tensor.as_strided((tensor.numel(),), (1,))


def pack_plainly(truths: Tensor) -> Tensor:
    """Return `pack_bits` in plain torch: shifts and a sum."""
    padded = torch.zeros(8 * bytes_of_bits(truths.numel()), dtype=torch.uint8, device=truths.device)
    padded[: truths.numel()] = truths
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=truths.device)
    return (padded.view(-1, 8) * weights).sum(1, dtype=torch.uint8)


def unpack_plainly(bits: Tensor, count: int) -> Tensor:
    """Return `unpack_bits` in plain torch."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits[:, None] >> shifts).bitwise_and_(1).view(-1)[:count].bool()


def multiply_plainly(x: Tensor, bits: Tensor, scale: float) -> Tensor:
    """Return `multiply_bits` in plain torch, computed a chunk of mask at a time."""
    y, wide = torch.empty_like(x), torch.promote_types(x.dtype, torch.float32)
    source, target = flat(x), flat(y)
    for start in range(0, len(source), _CHUNK):
        part = source[start : start + _CHUNK]
        mask = unpack_plainly(bits[start // 8 : bytes_of_bits(start + len(part))], len(part)).to(wide)
        torch.mul(part, mask.mul_(scale), out=target[start : start + _CHUNK])
    return y


def _pack(truths: Tensor, stride: list[int] | None = None) -> Tensor:
    truths = laid_out(truths, stride)
    if not dense(truths):
        truths = truths.contiguous()
    if fast := triton_version(__name__, truths.device):
        return fast.pack(truths)
    run = native(SOURCE, "pack", _POINTERS) if truths.device.type == "cpu" else None
    if run is None:
        return pack_plainly(flat(truths))
    bits = torch.empty(bytes_of_bits(truths.numel()), dtype=torch.uint8)
    run(pointer(truths), pointer(bits), truths.numel())
    return bits


def _unpack(bits: Tensor, size: list[int], stride: list[int]) -> Tensor:
    truths = torch.empty_strided(size, stride, dtype=torch.bool, device=bits.device)
    if fast := triton_version(__name__, bits.device):
        fast.unpack(bits, truths)
        return truths
    run = native(SOURCE, "unpack", _POINTERS) if bits.device.type == "cpu" else None
    if run is None:
        flat(truths).copy_(unpack_plainly(bits, truths.numel()))
    else:
        run(pointer(bits), pointer(truths), truths.numel())
    return truths


def _multiply(x: Tensor, bits: Tensor, scale: float, stride: list[int] | None = None) -> Tensor:
    x = laid_out(x, stride)
    if not dense(x):
        raise ValueError(f"x has strides {x.stride()} for shape {tuple(x.shape)}: its elements must fill their memory")
    if fast := triton_version(__name__, x.device):
        return fast.multiply(x, bits, scale)
    name = _PRODUCTS.get(x.dtype)
    run = native(SOURCE, name, _PRODUCT) if name and x.device.type == "cpu" else None
    if run is None:
        return multiply_plainly(x, bits, scale)
    y = torch.empty_like(x)
    run(pointer(x), pointer(bits), scale, pointer(y), x.numel())
    return y


def _setup_multiply(ctx, inputs, output) -> None:
    x, bits, ctx.scale, stride = inputs
    ctx.layout = x.shape, x.stride() if stride is None else stride
    ctx.save_for_backward(bits)


def _multiply_backward(ctx, gradient):
    (bits,) = ctx.saved_tensors
    gradient = gradient.new_empty_strided(*ctx.layout).copy_(gradient)  # the bits lie in the order of x's memory
    return multiply_bits(gradient, bits, ctx.scale), None, None, None


pack_bits = define(
    "pack_bits(Tensor truths, int[]? stride=None) -> Tensor",
    _pack,
    lambda truths, stride=None: truths.new_empty((bytes_of_bits(truths.numel()),), dtype=torch.uint8),
)
"""Truth values (bool, dense, any shape) → uint8 [ceil(n / 8)], in the order of memory.

stride: their planned stride (`laid_out`).
"""

unpack_bits = define(
    "unpack_bits(Tensor bits, int[] size, int[] stride) -> Tensor",
    _unpack,
    lambda bits, size, stride: torch.empty_strided(size, stride, dtype=torch.bool, device=bits.device),
)
"""The inverse of `pack_bits`: bool of a size and (dense) stride."""

multiply_bits = define(
    "multiply_bits(Tensor x, Tensor bits, float scale, int[]? stride=None) -> Tensor",
    _multiply,
    lambda x, bits, scale, stride=None: torch.empty_like(x),
    backward=_multiply_backward,
    setup=_setup_multiply,
)
"""x (dense) times a mask of 0 and `scale` in bits: x.shape, laid out like x. The bits' order is x's in memory.

stride: the planned stride of x, to which the bits belong; an x that lies differently is copied (`laid_out`).

16-bit x is multiplied in float32 and rounded once, as aten.native_dropout_backward does it.
"""
