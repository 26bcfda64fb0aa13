"""Packs and unpacks codes of 1 to 8 bits without gaps between them.

Kept: exactly ceil(n b / 8) bytes for n codes of b bits. Code i lies in bits i b to (i + 1) b of the bytes, read as one
little-endian number. So eight codes fill b bytes; with b = 1 it is the order of `bits`.
"""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p

import torch
from torch import Tensor

from ..backend.library import define
from ..backend.native import native, pointer
from ..backend.triton_dispatch import triton_version
from .bits import dense, flat

SOURCE = r"""
#include <stdint.h>
#include <string.h>

#define ALWAYS static inline __attribute__((always_inline))
enum { TILE = 256 };  /* codes worked on at once; they stay in the first cache */

/* 8 codes of a byte each, to 8 b bits */
ALWAYS uint64_t gathered(uint64_t word, int b) {
    word &= ((1ull << b) - 1) * 0x0101010101010101ull;
    word = (word & 0x00ff00ff00ff00ffull) | ((word >> 8 & 0x00ff00ff00ff00ffull) << b);
    word = (word & 0x0000ffff0000ffffull) | ((word >> 16 & 0x0000ffff0000ffffull) << 2 * b);
    return (word & 0xffffffffull) | (word >> 32) << 4 * b;
}

ALWAYS uint64_t scattered(uint64_t word, int b) {
    uint64_t fours = (1ull << 4 * b) - 1, twos = ((1ull << 2 * b) - 1) * 0x100000001ull;
    uint64_t ones = ((1ull << b) - 1) * 0x0001000100010001ull;
    word = (word & fours) | (word >> 4 * b & fours) << 32;
    word = (word & twos) | (word >> 2 * b & twos) << 16;
    return (word & ones) | (word >> b & ones) << 8;
}

ALWAYS void packed_by(const uint8_t *codes, uint8_t *packed, int64_t count, int b) {
    uint64_t words[TILE / 8] = {0};
    int64_t whole = count / 8;
    memcpy(words, codes, count);
    #pragma omp simd
    for (int i = 0; i < TILE / 8; i++) words[i] = gathered(words[i], b);
    int64_t i = 0;
    for (; i * b + 8 <= whole * b; i++) memcpy(packed + i * b, words + i, 8);  /* the next one writes over the rest */
    for (; i < whole; i++) memcpy(packed + i * b, words + i, b);
    if (count % 8) memcpy(packed + whole * b, words + whole, (count % 8 * b + 7) / 8);
}

ALWAYS void unpacked_by(const uint8_t *packed, uint8_t *codes, int64_t count, int b) {
    uint64_t words[TILE / 8] = {0};
    int64_t whole = count / 8;
    int64_t i = 0;
    for (; i * b + 8 <= whole * b; i++) memcpy(words + i, packed + i * b, 8);  /* `scattered` ignores the rest */
    for (; i < whole; i++) memcpy(words + i, packed + i * b, b);
    if (count % 8) memcpy(words + whole, packed + whole * b, (count % 8 * b + 7) / 8);
    #pragma omp simd
    for (int i = 0; i < TILE / 8; i++) words[i] = scattered(words[i], b);
    memcpy(codes, words, count);
}

/* b is a constant in each case, so that moves of b bytes are moves and not calls */
#define CASES(run) switch (b) {                                                            \
    case 1: run(1); break; case 2: run(2); break; case 3: run(3); break; case 4: run(4); break; \
    case 5: run(5); break; case 6: run(6); break; case 7: run(7); break; default: run(8);       \
}

/* at most a TILE */
static void pack_tile(const uint8_t *codes, uint8_t *packed, int64_t count, int b) {
    #define RUN(bits) packed_by(codes, packed, count, bits)
    CASES(RUN)
    #undef RUN
}

static void unpack_tile(const uint8_t *packed, uint8_t *codes, int64_t count, int b) {
    #define RUN(bits) unpacked_by(packed, codes, count, bits)
    CASES(RUN)
    #undef RUN
}

static inline int64_t in_tile(int64_t start, int64_t count) { return count - start < TILE ? count - start : TILE; }

void pack_codes(const uint8_t *codes, uint8_t *packed, int64_t count, int b) {
    #pragma omp parallel for schedule(static) if (count > 131072)
    for (int64_t start = 0; start < count; start += TILE)
        pack_tile(codes + start, packed + start / 8 * b, in_tile(start, count), b);
}

void unpack_codes(const uint8_t *packed, uint8_t *codes, int64_t count, int b) {
    #pragma omp parallel for schedule(static) if (count > 131072)
    for (int64_t start = 0; start < count; start += TILE)
        unpack_tile(packed + start / 8 * b, codes + start, in_tile(start, count), b);
}
"""

_POINTERS = (c_void_p, c_void_p, c_int64, c_int)


def bytes_of_codes(count: int, bits: int) -> int:
    """Return the bytes of a number of codes. Raises ValueError unless a code has 1 to 8 bits."""
    if not 1 <= bits <= 8:
        raise ValueError(f"codes of {bits} bits: a code has 1 to 8; give another number of bits")
    return -(-count * bits // 8)


def pack_codes_plainly(codes: Tensor, bits: int) -> Tensor:
    """Return `pack_codes` in plain torch: codes (uint8 [n]) → uint8 [ceil(n b / 8)]."""
    padded = codes.new_zeros(-(-len(codes) // 8) * 8, dtype=torch.int64)
    padded[: len(codes)] = codes.bitwise_and(2**bits - 1)
    shifts = torch.arange(0, 8 * bits, bits, device=codes.device)
    words = (padded.view(-1, 8) << shifts).sum(1)  # no two share a bit: a sum joins them
    return words.view(torch.uint8).view(-1, 8)[:, :bits].contiguous().view(-1)[: bytes_of_codes(len(codes), bits)]


def unpack_codes_plainly(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return `unpack_codes` in plain torch: uint8 [ceil(n b / 8)] → codes (uint8 [n])."""
    padded = packed.new_zeros(-(-count // 8) * bits)
    padded[: len(packed)] = packed
    words = packed.new_zeros(-(-count // 8), 8)
    words[:, :bits] = padded.view(-1, bits)
    shifts = torch.arange(0, 8 * bits, bits, device=packed.device)
    return (words.view(torch.int64) >> shifts).bitwise_and_(2**bits - 1).to(torch.uint8).view(-1)[:count]


def check_packed(packed: Tensor, size_bytes: int) -> None:
    """Raise ValueError unless a code is a uint8 tensor of this many bytes, one after another."""
    if packed.dtype != torch.uint8 or packed.shape != (size_bytes,) or not packed.is_contiguous():
        kind = f"{packed.dtype} of shape {tuple(packed.shape)}"
        raise ValueError(f"the code is {kind}, not {size_bytes} bytes of uint8: decode with what it was encoded with")


def _pack(codes: Tensor, bits: int) -> Tensor:
    size_bytes = bytes_of_codes(codes.numel(), bits)
    if codes.dtype != torch.uint8 or not dense(codes):
        raise ValueError(f"codes are {codes.dtype} with strides {codes.stride()}: pass uint8 that fill their memory")
    if fast := triton_version(__name__, codes.device):
        return fast.pack(codes, bits)
    run = native(SOURCE, "pack_codes", _POINTERS) if codes.device.type == "cpu" else None
    if run is None:
        return pack_codes_plainly(flat(codes), bits)
    packed = torch.empty(size_bytes, dtype=torch.uint8)
    run(pointer(codes), pointer(packed), codes.numel(), bits)
    return packed


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    check_packed(packed, bytes_of_codes(count, bits))
    if fast := triton_version(__name__, packed.device):
        return fast.unpack(packed, bits, count)
    run = native(SOURCE, "unpack_codes", _POINTERS) if packed.device.type == "cpu" else None
    if run is None:
        return unpack_codes_plainly(packed, bits, count)
    codes = torch.empty(count, dtype=torch.uint8)
    run(pointer(packed), pointer(codes), count, bits)
    return codes


pack_codes = define(
    "pack_codes(Tensor codes, int bits) -> Tensor",
    _pack,
    lambda codes, bits: codes.new_empty((bytes_of_codes(codes.numel(), bits),), dtype=torch.uint8),
)
"""Codes (uint8, dense, any shape) → uint8 [ceil(n b / 8)] in the order of memory; each code's b lowest bits are
kept.
"""

unpack_codes = define(
    "unpack_codes(Tensor packed, int bits, int count) -> Tensor",
    _unpack,
    lambda packed, bits, count: packed.new_empty((count,)),
)
"""The inverse of `pack_codes`: uint8 [n]."""
