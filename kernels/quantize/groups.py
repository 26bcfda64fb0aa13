"""Tensors in 1 to 8 bits per element: groups of elements, each with its own offset and scale.

Kept: ceil(n b / 8) + 4 ceil(n / group) bytes: offset and scale of each group in bfloat16, then the codes. The offset is
rounded down and the scale up, so that a group lies within its levels ("ActNN", arXiv 2104.14129, section 3; "GACT",
arXiv 2206.11357).

Rounded to the nearest, an element is decoded to offset + code * scale. Rounded at random, it is rounded up if a number
u of [0, 1) is below its distance from the level below, as a fraction of a level. It is decoded to
offset + (code + u - 1/2) * scale, with the same u, drawn again. The error is then even over a level and independent of
the element, without bias and with the variance scale² / 12. This is subtractive dither (Roberts, "Picture coding using
pseudo-random noise", 1962; Schuchman, "Dither signals and their effect on quantization noise", 1964). Rounding at
random without subtracting has twice that variance over an even spread.

In groups that mostly lie on levels (zeros of ReLU, of attention's probabilities) not subtracting errs less, and nothing
is subtracted. A negative scale marks such a group; an element at the fraction f of a level then has the variance
scale² f (1 - f). A randomized Hadamard transform before encoding makes scales of tensors with outliers smaller
("QuaRot", arXiv 2404.00456).

A group with an infinity or NaN, or one so wide that half a level beyond its levels overflows, is decoded to NaN
throughout. float64 and float16 are encoded as float32; decoding clamps to the largest number of the dtype.
"""

from __future__ import annotations

from ctypes import Structure, byref, c_int, c_int64, c_uint64, c_void_p

import torch
from torch import Tensor

from ..backend.counter_random import state_of
from ..backend.library import define
from ..backend.native import native, pointer
from ..backend.planned_layouts import laid_out
from ..backend.triton_dispatch import triton_version
from ..few_bit.few_bit import check_dense
from ..packing.bits import flat
from ..packing.packed_codes import check_packed
from ..packing.tiles import KINDS
from ..packing.tiles import SOURCE as TILES_SOURCE
from .hadamard import SOURCE as HADAMARD_SOURCE
from .hadamard import state_of_signs
from .plain_groups import bytes_of_groups, decode_plainly, encode_plainly

SOURCE = (
    "#include <math.h>\n"
    + TILES_SOURCE
    + HADAMARD_SOURCE
    + r"""
enum { LARGEST = 4096 };  /* elements of a group */
#define LARGEST_BFLOAT16 0x1.fep127f

typedef struct {
    uint64_t state, signs;
    int64_t group;
    int32_t bits, stochastic, transformed, kind;
} Spec;

static inline uint32_t word_of(float x) { uint32_t word; memcpy(&word, &x, 4); return word; }
static inline float float_of(uint32_t word) { float x; memcpy(&x, &word, 4); return x; }

/* writes offset and scale, and returns whether the group can be encoded */
static int measure(const float *x, int64_t count, int levels, float *offset, float *scale) {
    float low = x[0], high = x[0];
    #pragma omp simd reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < count; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    int bad = 0;
    #pragma omp simd reduction(| : bad)
    for (int64_t i = 0; i < count; i++) bad |= (word_of(x[i]) & 0x7f800000u) == 0x7f800000u;
    uint32_t word = word_of(low);
    *offset = float_of((word & 0xffff0000u) + (word >> 31 && word & 0xffffu ? 0x10000u : 0)) + 0.0f;
    float width = high - *offset + 0.0f;  /* no negative zero */
    word = word_of(width / (float)levels);
    if (width > 0 && word == 0) word = 1;
    *scale = float_of((word + 0xffffu) & 0xffff0000u);
    if (!bad && isfinite(*offset + *scale * ((float)levels + 0.5f)) && isfinite(*offset - *scale * 0.5f)) return 1;
    *offset = *scale = float_of(0x7fc00000u);
    return 0;
}

/* returns whether the group lies on its levels: f (1 - f) is below a twelfth on average, f in parts of 256 */
static int quantize(const float *x, int64_t count, int levels, float offset, float scale, const float *numbers,
                    uint8_t *codes) {
    float divisor = scale > 0 ? scale : 1;
    int32_t variance = 0;
    #pragma omp simd reduction(+ : variance)
    for (int64_t i = 0; i < count; i++) {
        float above = (x[i] - offset) / divisor;
        int32_t code = (int32_t)above;
        float left = (above - (float)code) * 16777216.0f;
        int32_t part = (int32_t)left >> 16;
        variance += part * (256 - part);
        code += numbers[i] < left;
        codes[i] = (uint8_t)(code < levels ? code : levels);
    }
    return scale > 0 && 12 * variance < 65536 * (int32_t)count;
}

/* a unit: the fewest whole tiles that are whole groups */
static inline int64_t unit_of(const Spec *spec) { return spec->group > TILE ? spec->group : TILE; }

static void encode_unit(const void *x, const Spec *spec, int64_t start, int64_t count, uint16_t *parameters,
                        uint8_t *packed) {
    float room[LARGEST], numbers[LARGEST];
    uint8_t codes[LARGEST];
    int levels = (1 << spec->bits) - 1;
    const float *values = room;
    if (spec->kind == FLOAT && !spec->transformed) values = (const float *)x + start;
    else for (int64_t i = 0; i < count; i += TILE) {
        int64_t here = in_tile(i, count);
        const float *tile = load_tile(x, spec->kind, start + i, here, room + i);
        if (tile != room + i) memcpy(room + i, tile, sizeof(float) * TILE);
        if (spec->transformed) spread_tile(room + i, here, 0, spec->signs, start + i);
    }
    for (int64_t i = 0; i < count; i += TILE) {
        if (spec->stochastic) random_tile(spec->state, start + i, numbers + i);
        else for (int k = 0; k < TILE; k++) numbers[i + k] = 8388607.5f;  /* up from a half on */
    }
    for (int64_t i = 0; i < count; i += spec->group) {
        int64_t here = count - i < spec->group ? count - i : spec->group, place = 2 * ((start + i) / spec->group);
        float offset, scale;
        int on_levels = 0;
        if (measure(values + i, here, levels, &offset, &scale))
            on_levels = quantize(values + i, here, levels, offset, scale, numbers + i, codes + i);
        else memset(codes + i, 0, here);
        parameters[place] = word_of(offset) >> 16;
        parameters[place + 1] = word_of(scale) >> 16 | (spec->stochastic && on_levels) << 15;
    }
    for (int64_t i = 0; i < count; i += TILE)
        pack_tile(codes + i, packed + (start + i) / 8 * spec->bits, in_tile(i, count), spec->bits);
}

void encode_groups(const void *x, const Spec *spec, uint8_t *code, int64_t count) {
    int64_t unit = unit_of(spec), groups = (count + spec->group - 1) / spec->group;
    #pragma omp parallel for schedule(static) if (count > 16384)
    for (int64_t start = 0; start < count; start += unit)
        encode_unit(x, spec, start, count - start < unit ? count - start : unit, (uint16_t *)code, code + 4 * groups);
}

static void decode_tile(const uint8_t *code, const Spec *spec, int64_t start, int64_t count, int64_t all, float *to) {
    const uint16_t *parameters = (const uint16_t *)code;
    uint8_t codes[TILE] = {0};
    int64_t groups = (all + spec->group - 1) / spec->group;
    float numbers[TILE] = {0};
    unpack_tile(code + 4 * groups + start / 8 * spec->bits, codes, count, spec->bits);
    if (spec->stochastic) random_tile(spec->state, start, numbers);
    for (int64_t i = 0; i < count;) {
        int64_t group = (start + i) / spec->group, end = (group + 1) * spec->group - start;
        float offset = float_of((uint32_t)parameters[2 * group] << 16);
        uint32_t word = parameters[2 * group + 1];
        float scale = float_of((word & 0x7fffu) << 16), taken = spec->stochastic && !(word >> 15) ? 1 : 0;
        if (end > TILE) end = TILE;
        #pragma omp simd
        for (int64_t k = i; k < end; k++)
            to[k] = offset + ((float)(int32_t)codes[k] + taken * (numbers[k] * 0x1p-24f - 0.5f)) * scale;
        i = end;
    }
    if (spec->transformed) spread_tile(to, count, 1, spec->signs, start);
    if (spec->kind == FLOAT) return;
    #pragma omp simd
    for (int k = 0; k < TILE; k++) {  /* NaN stays */
        float low = to[k] < -LARGEST_BFLOAT16 ? -LARGEST_BFLOAT16 : to[k];
        to[k] = low > LARGEST_BFLOAT16 ? LARGEST_BFLOAT16 : low;
    }
}

void decode_groups(const uint8_t *code, const Spec *spec, void *x, int64_t count) {
    #pragma omp parallel for schedule(static) if (count > 16384)
    for (int64_t start = 0; start < count; start += TILE) {
        float room[TILE];
        int64_t here = in_tile(start, count);
        float *to = new_tile(x, spec->kind, start, here, room);
        decode_tile(code, spec, start, here, count, to);
        store_tile(to, spec->kind, start, here, x);
    }
}
"""
)

_POINTERS = (c_void_p, c_void_p, c_void_p, c_int64)


class _Spec(Structure):
    """The parameters of a code, as `Spec` in the C."""

    _fields_ = (
        ("state", c_uint64),
        ("signs", c_uint64),
        ("group", c_int64),
        ("bits", c_int),
        ("stochastic", c_int),
        ("transformed", c_int),
        ("kind", c_int),
    )


def _encode(
    x: Tensor, bits: int, group: int, stochastic: bool, hadamard: bool, seed: int, stride: list[int] | None = None
) -> Tensor:
    x = laid_out(x, stride)
    check_dense(x)
    size_bytes = bytes_of_groups(x.numel(), bits, group)
    if fast := triton_version(__name__, x.device):
        return fast.encode(x, bits, group, stochastic, hadamard, seed)
    kind = KINDS.get(x.dtype)
    run = native(SOURCE, "encode_groups", _POINTERS) if kind is not None and x.device.type == "cpu" else None
    if run is None:
        return encode_plainly(x, bits, group, stochastic, hadamard, seed)
    code = torch.empty(size_bytes, dtype=torch.uint8)
    spec = _Spec(state_of(seed), state_of_signs(seed), group, bits, stochastic, hadamard, kind)
    run(pointer(x), byref(spec), pointer(code), x.numel())
    return code


def _decode(
    code: Tensor,
    bits: int,
    group: int,
    stochastic: bool,
    hadamard: bool,
    seed: int,
    size: list[int],
    stride: list[int],
    dtype: torch.dtype,
) -> Tensor:
    x = torch.empty_strided(size, stride, dtype=dtype, device=code.device)
    check_packed(code, bytes_of_groups(x.numel(), bits, group))
    if fast := triton_version(__name__, x.device):
        fast.decode(code, flat(x), bits, group, stochastic, hadamard, seed)
        return x
    kind = KINDS.get(dtype)
    run = native(SOURCE, "decode_groups", _POINTERS) if kind is not None and code.device.type == "cpu" else None
    if run is None:
        decode_plainly(code, flat(x), bits, group, stochastic, hadamard, seed)
    else:
        spec = _Spec(state_of(seed), state_of_signs(seed), group, bits, stochastic, hadamard, kind)
        run(pointer(code), byref(spec), pointer(x), x.numel())
    return x


encode_groups = define(
    "encode_groups(Tensor x, int bits, int group, bool stochastic, bool hadamard, int seed, int[]? stride=None)"
    " -> Tensor",
    _encode,
    lambda x, bits, group, stochastic, hadamard, seed, stride=None: x.new_empty(
        (bytes_of_groups(x.numel(), bits, group),), dtype=torch.uint8
    ),
)
"""x (dense) → uint8 [4 ceil(n / group) + ceil(n b / 8)]: offsets and scales, then codes in the order of memory.

bits: 1 to 8.
group: elements, a power of two from 8 to 4096.
stochastic: whether to round at random by the seed, without bias, or else to the nearest.
hadamard: whether to transform before, with signs by the seed.
stride: the planned stride of x (`laid_out`).
"""

decode_groups = define(
    "decode_groups(Tensor code, int bits, int group, bool stochastic, bool hadamard, int seed, int[] size,"
    " int[] stride, ScalarType dtype) -> Tensor",
    _decode,
    lambda code, bits, group, stochastic, hadamard, seed, size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device=code.device
    ),
)
"""Returns the tensor of a code of `encode_groups`, with the same options, of a size, (dense) stride and type."""
