"""Values that are only compared with thresholds, kept in one bit for each element: inside or outside of the thresholds.

Kept: ceil(n / 8) bytes for n elements, where eager keeps 4 n in float32. Decoding gives one number inside and another
outside. The backward of a piecewise linear activation computes the same bits from it as from the element itself.

`Thresholds` says on which side NaN is, as in torch's kernels. Some kernels for a CPU take NaN for inside where they
work on vectors, and for outside in the last elements. For them a second plane of bits marks NaN, which is restored.
"""

from __future__ import annotations

from ctypes import c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass, replace
from functools import cache
from math import inf, isfinite

import torch
from torch import Tensor

from ..backend.library import define
from ..backend.native import native, pointer
from ..backend.planned_layouts import laid_out
from ..backend.triton_dispatch import triton_version
from ..codec import Codec
from ..packing.bits import SOURCE as BITS_SOURCE
from ..packing.bits import bytes_of_bits, dense, flat, pack_bits, unpack_bits

SOURCE = (
    BITS_SOURCE
    + r"""
enum { STRETCH = 512 };

static inline float float_of(uint16_t upper) {
    uint32_t word = (uint32_t)upper << 16;
    float number;
    memcpy(&number, &word, 4);
    return number;
}
#define ITSELF(x) (x)

#define PACK_INSIDE(name, kept, number, read)                                                                    \
    static void name##_stretch(const kept *x, number low, number high, int is_open, int nan_inside,              \
                               uint8_t *bits, int count) {                                                       \
        uint8_t truths[STRETCH] = {0};                                                                           \
        if (is_open)                                                                                             \
            for (int i = 0; i < count; i++) truths[i] = (read(x[i]) > low) & (read(x[i]) < high);                \
        else                                                                                                     \
            for (int i = 0; i < count; i++) truths[i] = (read(x[i]) >= low) & (read(x[i]) <= high);              \
        if (nan_inside)                                                                                          \
            for (int i = 0; i < count; i++) truths[i] |= read(x[i]) != read(x[i]);                               \
        for (int i = 0; i < (count + 7) / 8; i++) bits[i] = packed(truths + 8 * i);                              \
    }                                                                                                            \
    void name(const kept *x, double low, double high, int is_open, int nan_inside, uint8_t *bits,                \
              int64_t count) {                                                                                   \
        int64_t whole = count / STRETCH * STRETCH;                                                               \
        _Pragma("omp parallel for schedule(static) if (count > 32768)")                                          \
        for (int64_t i = 0; i < whole; i += STRETCH)                                                             \
            name##_stretch(x + i, (number)low, (number)high, is_open, nan_inside, bits + i / 8, STRETCH);        \
        name##_stretch(x + whole, (number)low, (number)high, is_open, nan_inside, bits + whole / 8,              \
                       (int)(count - whole));                                                                    \
    }
PACK_INSIDE(inside_float, float, float, ITSELF)
PACK_INSIDE(inside_double, double, double, ITSELF)
PACK_INSIDE(inside_bfloat16, uint16_t, float, float_of)

/* 8 bits to 8 bytes, all ones where the bit is 1 */
static inline uint64_t spread(uint8_t bits) {
    uint64_t selected = bits * 0x0101010101010101ull & 0x8040201008040201ull;
    return ((selected + 0x007f7f7f7f7f7f7full | selected) >> 7 & 0x0101010101010101ull) * 255;
}

/* sides: the number for an element outside and the number for an element inside */
#define UNPACK_INSIDE(name, word, whole)                                                                \
    static void name##_stretch(const uint8_t *bits, const word *sides, word *y, int count) {            \
        const word outside = sides[0], other = sides[0] ^ sides[1];                                     \
        uint64_t words[STRETCH / 8];                                                                    \
        int8_t truths[STRETCH];                                                                         \
        for (int i = 0; i < (count + 7) / 8; i++) words[i] = spread(bits[i]);                           \
        memcpy(truths, words, STRETCH);                                                                 \
        _Pragma("omp simd")                                                                             \
        for (int i = 0; i < count; i++) y[i] = outside ^ (other & (word)(whole)truths[i]);              \
    }                                                                                                   \
    void name(const uint8_t *bits, const word *sides, word *y, int64_t count) {                         \
        int64_t end = count / STRETCH * STRETCH;                                                        \
        _Pragma("omp parallel for schedule(static) if (count > 32768)")                                 \
        for (int64_t i = 0; i < end; i += STRETCH) name##_stretch(bits + i / 8, sides, y + i, STRETCH); \
        name##_stretch(bits + end / 8, sides, y + end, (int)(count - end));                             \
    }
UNPACK_INSIDE(sides_2, uint16_t, int16_t)
UNPACK_INSIDE(sides_4, uint32_t, int32_t)
UNPACK_INSIDE(sides_8, uint64_t, int64_t)
"""
)

_INSIDE = (c_void_p, c_double, c_double, c_int, c_int, c_void_p, c_int64)
_SIDES = (c_void_p, c_void_p, c_void_p, c_int64)
_NAMES = {
    torch.float32: "inside_float",
    torch.float64: "inside_double",
    torch.bfloat16: "inside_bfloat16",
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Thresholds:
    """An interval of values: low ≤ x ≤ high, or low < x < high if `is_open`.

    nan_inside: whether NaN is inside.
    nan_varies: whether a CPU's kernels take NaN sometimes for inside and sometimes for outside, by its place in memory.
    """

    low: float = -inf
    high: float = inf
    is_open: bool = False
    nan_inside: bool = False
    nan_varies: bool = False

    def contain(self, x: Tensor) -> Tensor:
        """Return truth values of x.shape: which elements are inside."""
        inside = (x > self.low) & (x < self.high) if self.is_open else (x >= self.low) & (x <= self.high)
        return inside.logical_or_(x.isnan()) if self.nan_inside else inside

    def rounded_to(self, dtype: torch.dtype) -> Thresholds | None:
        """Return the thresholds as elements of a type are compared with them; None where that depends on the device."""
        low, high = (float(torch.tensor(threshold, dtype=dtype)) for threshold in (self.low, self.high))
        if dtype.itemsize < 4 and (low, high) != (self.low, self.high):
            return None  # some kernels round thresholds to 16 bits, some compare in float32
        return replace(self, low=low, high=high)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"x = {self.low + 0.0:g}"
        sign = "<" if self.is_open else "≤"
        low, high = f"{self.low + 0.0:g} {sign} ", f" {sign} {self.high + 0.0:g}"  # -0 + 0 is 0
        return f"{low if isfinite(self.low) else ''}x{high if isfinite(self.high) else ''}"


_NAN = Thresholds(inf, -inf, nan_inside=True)


@cache
def threshold_codec(thresholds: Thresholds, dtype: torch.dtype, device_type: str = "cpu") -> Codec | None:
    """Return the codec for what is only compared with thresholds; None if the type cannot represent both sides.

    It keeps a bit for each element, and one more where NaN varies.
    """
    rounded = thresholds.rounded_to(dtype) if dtype in DTYPES else None
    sides = _sides(rounded, dtype) if rounded is not None else None
    if rounded is None or sides is None:
        return None
    tells_nan = rounded.nan_varies and device_type == "cpu"
    return Codec(
        f"{1 + tells_nan}-bit {rounded}",
        pack_inside,
        unpack_inside,
        (dtype,),
        encode_options=(rounded.low, rounded.high, rounded.is_open, rounded.nan_inside, tells_nan),
        decode_options=sides,
        needs_dtype=True,
        decodes_to_placeholder=True,
    )


def _sides(thresholds: Thresholds, dtype: torch.dtype) -> tuple[float, float] | None:
    """Return finite numbers inside and outside, far from the thresholds if there is room."""
    low, high = thresholds.low, thresholds.high
    if low > high:
        return None
    near = [threshold for threshold in (low, high) if isfinite(threshold)]
    beyond = [threshold + side * max(1.0, abs(threshold)) for threshold in near for side in (1, -1)]
    candidates = torch.tensor([low / 2 + high / 2, *beyond, *near, 0.0], dtype=dtype)
    candidates = candidates[candidates.isfinite()]
    inside = thresholds.contain(candidates)
    if inside.all() or not inside.any():
        return None
    return float(candidates[inside][0]), float(candidates[~inside][0])


def _pack(
    x: Tensor,
    low: float,
    high: float,
    is_open: bool,
    nan_inside: bool,
    tells_nan: bool = False,
    stride: list[int] | None = None,
) -> Tensor:
    x = laid_out(x, stride)
    if not dense(x):
        x = x.contiguous()
    x, thresholds = flat(x.detach()), Thresholds(low, high, is_open, nan_inside)
    planes = (thresholds, _NAN) if tells_nan else (thresholds,)
    if fast := triton_version(__name__, x.device):
        bits = [fast.pack_inside(x, plane) for plane in planes]
        return torch.cat(bits) if tells_nan else bits[0]
    plane_bytes = bytes_of_bits(len(x))
    bits = torch.empty(len(planes) * plane_bytes, dtype=torch.uint8, device=x.device)
    name = _NAMES.get(x.dtype)
    run = native(SOURCE, name, _INSIDE) if name and x.device.type == "cpu" else None
    for index, plane in enumerate(planes):
        plane_bits = bits[index * plane_bytes : (index + 1) * plane_bytes]
        if run is None:
            plane_bits.copy_(pack_bits(plane.contain(x)))
        else:
            run(pointer(x), plane.low, plane.high, plane.is_open, plane.nan_inside, pointer(plane_bits), len(x))
    return bits


def _unpack(
    code: Tensor, inside: float, outside: float, size: list[int], stride: list[int], dtype: torch.dtype
) -> Tensor:
    count = torch.Size(size).numel()
    plane_bytes = bytes_of_bits(count)
    if code.dtype != torch.uint8 or len(code) not in (plane_bytes, 2 * plane_bytes):
        raise ValueError(
            f"the code is {code.dtype} of {len(code)} elements, for {count} bits with or without a plane for NaN: "
            "decode with the size with which it was encoded"
        )
    y = torch.empty_strided(size, stride, dtype=dtype, device=code.device)
    sides = torch.tensor([outside, inside], dtype=dtype)
    run = native(SOURCE, f"sides_{dtype.itemsize}", _SIDES) if code.device.type == "cpu" else None
    if fast := triton_version(__name__, y.device):
        fast.unpack_inside(code[:plane_bytes], sides, y)
    elif run is None:
        is_inside = unpack_bits(code[:plane_bytes], [count], [1])
        torch.where(is_inside, *sides.flip(0).to(code.device), out=flat(y))
    else:
        run(pointer(code), pointer(sides), pointer(y), count)
    if len(code) > plane_bytes:
        flat(y)[unpack_bits(code[plane_bytes:], [count], [1])] = torch.nan
    return y


pack_inside = define(
    "pack_inside(Tensor x, float low, float high, bool is_open, bool nan_inside, bool tells_nan=False,"
    " int[]? stride=None) -> Tensor",
    _pack,
    lambda x, low, high, is_open, nan_inside, tells_nan=False, stride=None: x.new_empty(
        ((1 + tells_nan) * bytes_of_bits(x.numel()),), dtype=torch.uint8
    ),
)
"""x (dense) → uint8 [ceil(n / 8)]: which elements lie inside of `Thresholds`, in the order of memory.

With `tells_nan` as many bytes follow: which elements are NaN. stride: the planned stride of x (`laid_out`).
"""

unpack_inside = define(
    "unpack_inside(Tensor code, float inside, float outside, int[] size, int[] stride, ScalarType dtype) -> Tensor",
    _unpack,
    lambda code, inside, outside, size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device=code.device
    ),
)
"""Returns one number for each element inside and one for each outside, of a size, (dense) stride and type."""
