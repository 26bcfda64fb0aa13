"""Derivatives of activations in 1 to 8 bits: the number of a level for each element, and products with the levels.

Kept: ceil(n b / 8) bytes, where eager keeps the activation's input, 4 n. The method is that of "Few-Bit Backward:
Quantized Gradients of Activation Functions for Memory Footprint Reduction" (arXiv 2202.00441): the derivative is
replaced by a function that is constant between borders.

Codes cannot carry NaN: it falls into the last interval, and infinities into the outer intervals. The result that
    forward
computed from a NaN is NaN already.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_int, c_int64, c_void_p

import numpy as np
import torch
from torch import Tensor

from ..backend.library import define
from ..backend.native import native, pointer
from ..backend.planned_layouts import laid_out
from ..backend.triton_dispatch import triton_version
from ..packing.bits import dense, flat
from ..packing.packed_codes import bytes_of_codes, check_packed, pack_codes_plainly, unpack_codes_plainly
from ..packing.tiles import KINDS
from .interval_search import SOURCE as INTERVALS_SOURCE
from .interval_search import ascending, tables

SOURCE = (
    INTERVALS_SOURCE
    + r"""
/* the level of each interval, as integer and as float; the first ones, with the last repeated after them */
typedef struct {
    const int32_t *all;
    int32_t few[16];
    float numbers[256];
} Levels;

static Levels levels_of(const int32_t *levels, int last) {
    Levels a = {levels, {0}, {0}};
    for (int i = 0; i < 16; i++) a.few[i] = levels[i < last ? i : last];
    for (int i = 0; i <= last && i < 256; i++) a.numbers[i] = (float)levels[i];
    return a;
}

/* codes of a tile: the level of the interval that each element is in */
static inline void level_tile(const float *tile, const Intervals *intervals, const Levels *levels, uint8_t *codes) {
#ifdef __AVX512F__
    if (intervals->count <= ONE_REGISTER) {
        Padded borders = padded_borders(intervals);
        __m512i table = _mm512_loadu_si512(levels->few);
        for (int i = 0; i < TILE; i += 16) {
            __m512i level = _mm512_permutexvar_epi32(halved(tile + i, borders, 0), table);
            _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtepi32_epi8(level));
        }
        return;
    }
#endif
    int32_t places[TILE];
    find(tile, intervals, places);
    if (intervals->count < 256) {
        float chosen[TILE];
        #pragma omp simd
        for (int i = 0; i < TILE; i++) codes[i] = (uint8_t)places[i];
        look_up_floats(levels->numbers, intervals->count + 1, codes, chosen);
        #pragma omp simd
        for (int i = 0; i < TILE; i++) codes[i] = (uint8_t)(int32_t)chosen[i];
    } else {
        for (int i = 0; i < TILE; i++) codes[i] = (uint8_t)levels->all[places[i]];
    }
}

void encode_intervals(const void *x, int kind, const float *borders, int border_count, uint16_t *first,
                      const int32_t *levels, uint8_t *packed, int64_t count, int bits) {
    Intervals intervals = intervals_of(borders, border_count, first);
    Levels table = levels_of(levels, border_count);
    #pragma omp parallel for schedule(static) if (count > 16384)
    for (int64_t start = 0; start < count; start += TILE) {
        float room[TILE];
        uint8_t codes[TILE];
        int64_t here = in_tile(start, count);
        level_tile(load_tile(x, kind, start, here, room), &intervals, &table, codes);
        pack_tile(codes, packed + start / 8 * bits, here, bits);
    }
}

#define DECODE(name, word)                                                                   \
    void name(const uint8_t *packed, const word *table, word *y, int64_t count, int bits) {  \
        _Pragma("omp parallel for schedule(static) if (count > 16384)")                      \
        for (int64_t start = 0; start < count; start += TILE) {                              \
            uint8_t codes[TILE] = {0};                                                       \
            int64_t here = in_tile(start, count);                                            \
            unpack_tile(packed + start / 8 * bits, codes, here, bits);                       \
            for (int64_t i = 0; i < here; i++) y[start + i] = table[codes[i]];               \
        }                                                                                    \
    }
DECODE(decode_2, uint16_t)
DECODE(decode_8, uint64_t)

void decode_4(const uint8_t *packed, const float *table, float *y, int64_t count, int bits) {
    #pragma omp parallel for schedule(static) if (count > 16384)
    for (int64_t start = 0; start < count; start += TILE) {
        float room[TILE];
        uint8_t codes[TILE] = {0};
        int64_t here = in_tile(start, count);
        unpack_tile(packed + start / 8 * bits, codes, here, bits);
        float *to = new_tile(y, FLOAT, start, here, room);
        look_up_floats(table, 1 << bits, codes, to);
        store_tile(to, FLOAT, start, here, y);
    }
}

void multiply_levels(const void *x, int kind, const uint8_t *packed, const float *table, void *y, int64_t count,
                     int bits) {
    #pragma omp parallel for schedule(static) if (count > 16384)
    for (int64_t start = 0; start < count; start += TILE) {
        float room[TILE], factors[TILE];
        uint8_t codes[TILE] = {0};
        int64_t here = in_tile(start, count);
        const float *tile = load_tile(x, kind, start, here, room);
        unpack_tile(packed + start / 8 * bits, codes, here, bits);
        look_up_floats(table, 1 << bits, codes, factors);
        float *products = new_tile(y, kind, start, here, room);
        #pragma omp simd
        for (int i = 0; i < TILE; i++) products[i] = tile[i] * factors[i];
        store_tile(products, kind, start, here, y);
    }
}
"""
)

_ENCODE = (c_void_p, c_int, c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_int64, c_int)
_DECODE = (c_void_p, c_void_p, c_void_p, c_int64, c_int)
_MULTIPLY = (c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_int64, c_int)
_CHUNK = 1 << 20  # elements that the plain versions work on at once


def check_dense(x: Tensor) -> None:
    """Raise ValueError unless x holds floating-point numbers that fill their stretch of memory."""
    if not x.is_floating_point() or not dense(x):
        raise ValueError(
            f"x is {x.dtype} with strides {x.stride()} for shape {tuple(x.shape)}: codes are of floating-point "
            "numbers that fill their memory; pass x.contiguous()"
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which numbers of a type are compared and multiplied."""
    return torch.promote_types(dtype, torch.float32)


def _check_levels(count: int, bits: int) -> None:
    if not 1 <= count <= 2**bits:
        raise ValueError(f"{count} levels in {bits} bits: there must be 1 to {2**bits}; give more bits or other levels")


def _native_version(name: str, argument_types: tuple, x: Tensor):
    """Return a function of the C, if there is one for a tensor like x."""
    return native(SOURCE, name, argument_types) if x.dtype in KINDS and x.device.type == "cpu" else None


def _chunks(x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield stretches of x in the order of memory, in their wide type, each with the number of its first element."""
    elements = flat(x.detach())
    for start in range(0, len(elements), _CHUNK):
        yield start, elements[start : start + _CHUNK].to(_wide(x.dtype))


def encode_plainly(x: Tensor, borders: Tensor, levels: Tensor, bits: int) -> Tensor:
    """Return `encode_by_borders` in plain torch."""
    borders, levels = borders.to(x.device), levels.to(x.device, torch.uint8)
    places = (torch.bucketize(part, borders, right=True) for _, part in _chunks(x))
    empty = torch.empty(0, dtype=torch.uint8, device=x.device)
    return torch.cat([empty, *(pack_codes_plainly(levels[part], bits) for part in places)])


def multiply_plainly(gradient: Tensor, code: Tensor, table: Tensor, bits: int) -> Tensor:
    """Return `multiply_levels` in plain torch, computed a chunk at a time."""
    product, table = torch.empty_like(gradient.detach()), table.to(gradient.device)
    for start, part in _chunks(gradient):
        codes = code[start // 8 * bits : bytes_of_codes(start + len(part), bits)]
        factors = table[unpack_codes_plainly(codes, bits, len(part)).int()]
        flat(product)[start : start + len(part)] = part * factors
    return product


def _encode(
    x: Tensor, borders: list[float], level_of_interval: list[int], bits: int, stride: list[int] | None = None
) -> Tensor:
    x = laid_out(x, stride)
    check_dense(x)
    size_bytes = bytes_of_codes(x.numel(), bits)
    if len(level_of_interval) != len(borders) + 1:
        message = f"{len(borders)} borders and {len(level_of_interval)} intervals"
        raise ValueError(f"{message}: there must be one interval more than borders; give each interval's level")
    if not 0 <= min(level_of_interval) <= max(level_of_interval) < 2**bits:
        message = f"levels {min(level_of_interval)} to {max(level_of_interval)} in {bits} bits"
        raise ValueError(f"{message}: they must be 0 to {2**bits - 1}; give more bits or other levels")
    limits = ascending(borders, _wide(x.dtype))
    levels = torch.from_numpy(np.array(level_of_interval, dtype=np.uint8))
    if fast := triton_version(__name__, x.device):
        return fast.encode(x, limits, levels, bits)
    run = _native_version("encode_intervals", _ENCODE, x)
    if run is None:
        return encode_plainly(x, limits, levels, bits)
    packed, (table, first) = torch.empty(size_bytes, dtype=torch.uint8), tables(limits)
    wide_levels = np.array(level_of_interval, dtype=np.int32)
    intervals = pointer(table), len(limits), pointer(first), wide_levels.ctypes.data
    run(pointer(x), KINDS[x.dtype], *intervals, pointer(packed), x.numel(), bits)
    return packed


def _table(levels: list[float], bits: int, dtype: torch.dtype) -> Tensor:
    """Return the levels by their codes, with NaN for codes that encoding does not make."""
    _check_levels(len(levels), bits)
    return torch.tensor(levels + [torch.nan] * (2**bits - len(levels)), dtype=torch.float64).to(dtype)


def _decode(
    code: Tensor, representatives: list[float], bits: int, size: list[int], stride: list[int], dtype: torch.dtype
) -> Tensor:
    y = torch.empty_strided(size, stride, dtype=dtype, device=code.device)
    check_packed(code, bytes_of_codes(y.numel(), bits))
    table = _table(representatives, bits, dtype)
    if fast := triton_version(__name__, y.device):
        fast.decode(code, table, bits, y)
        return y
    run = native(SOURCE, f"decode_{dtype.itemsize}", _DECODE) if code.device.type == "cpu" else None
    if run is None:
        flat(y).copy_(table.to(code.device)[unpack_codes_plainly(code, bits, y.numel()).int()])
    else:
        run(pointer(code), pointer(table), pointer(y), y.numel(), bits)
    return y


def _multiply(
    gradient: Tensor, code: Tensor, levels: list[float], bits: int, stride: list[int] | None = None
) -> Tensor:
    gradient = laid_out(gradient, stride)
    check_dense(gradient)
    check_packed(code, bytes_of_codes(gradient.numel(), bits))
    table = _table(levels, bits, _wide(gradient.dtype))
    if fast := triton_version(__name__, gradient.device):
        return fast.multiply(gradient, code, table, bits)
    run = _native_version("multiply_levels", _MULTIPLY, gradient)
    if run is None:
        return multiply_plainly(gradient, code, table, bits)
    y = torch.empty_like(gradient)
    run(pointer(gradient), KINDS[y.dtype], pointer(code), pointer(table), pointer(y), y.numel(), bits)
    return y


encode_by_borders = define(
    "encode_by_borders(Tensor x, float[] borders, int[] level_of_interval, int bits, int[]? stride=None) -> Tensor",
    _encode,
    lambda x, borders, level_of_interval, bits, stride=None: x.new_empty(
        (bytes_of_codes(x.numel(), bits),), dtype=torch.uint8
    ),
)
"""x (dense) → uint8 [ceil(n b / 8)]: the level of each element's interval, in the order of memory.

Interval i goes from border i - 1, which belongs to it, to border i; the last holds NaN too. Borders are rounded to
float32, or are float64 if x is. stride: the planned stride of x (`laid_out`). Raises ValueError for borders that do not
ascend and for levels that do not fit.
"""

decode_levels = define(
    "decode_levels(Tensor code, float[] representatives, int bits, int[] size, int[] stride, ScalarType dtype)"
    " -> Tensor",
    _decode,
    lambda code, representatives, bits, size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device=code.device
    ),
)
"""Returns the levels of a code: representatives[code], of a size, (dense) stride and type."""

multiply_levels = define(
    "multiply_levels(Tensor gradient, Tensor code, float[] levels, int bits, int[]? stride=None) -> Tensor",
    _multiply,
    lambda gradient, code, levels, bits, stride=None: torch.empty_like(gradient),
)
"""Returns gradient (dense) times levels[code], in one pass, laid out like the gradient.

The code's order is the gradient's in memory. Products are taken in float32, or float64, and rounded once. stride: the
planned stride of the gradient, to which the code belongs; a gradient that lies differently is copied (`laid_out`).
"""
