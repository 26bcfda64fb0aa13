"""Max pooling that keeps the place of the maximum in each window, and not the input.

Kept: ceil(b n / 8) bytes for n windows of kh x kw places, b = ceil(log2(kh kw)): 2 bits for 2 x 2, 4 bits for 3 x 3.
Eager keeps the input and 64 bits for each window. The numbers are torch's own, to the bit. Forward calls torch's
kernel, a few planes at a time, and turns its indices into codes. Backward turns them back for torch's kernel, again a
few planes at a time; or, in C, it adds each window's gradient where its code says, in the same order.

Code c = i kw + j stands for the place (i, j) of a window. A window starts at (top, left), which padding may put before
the input's first row or column. It has that place at the index (top + i dh) W + left + j dw of a plane W wide, dh and
dw being the dilation. The index is the window's start, top W + left, plus a distance that depends on the code alone.
Codes lie in the order of the output in memory. Code k lies in the bits k b to k b + b - 1, bit i of all in byte i // 8
with the weight 2^(i % 8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ctypes import c_int, c_int64, c_void_p
from math import gcd, prod

import torch
from torch import Tensor

from ..backend.library import define
from ..backend.native import native, pointer
from ..backend.planned_layouts import laid_out
from ..backend.triton_dispatch import triton_version
from ..packing.bits import flat, pack_plainly, unpack_plainly

SOURCE = r"""
#include <stdint.h>
#include <string.h>

enum { STRETCH = 4096 };  /* codes of a thread's piece: a multiple of 8, so that no two threads share a byte */

/* starts: of the windows of a plane, each of them for `inner` elements in a row, as channels-last has it */
void encode(const int64_t *indices, const int64_t *starts, const int64_t *code_at, uint8_t *bytes, int bits,
            int64_t count, int64_t windows, int64_t inner) {
    #pragma omp parallel for schedule(static) if (count > 4 * STRETCH)
    for (int64_t first = 0; first < count; first += STRETCH) {
        uint8_t *out = bytes + first / 8 * bits;
        uint64_t waiting = 0;
        int filled = 0;
        int64_t end = first + STRETCH < count ? first + STRETCH : count;
        int64_t window = first / inner % windows, within = first % inner;
        for (int64_t k = first; k < end; k++) {
            waiting |= (uint64_t)code_at[indices[k] - starts[window]] << filled;
            for (filled += bits; filled >= 8; filled -= 8, waiting >>= 8) *out++ = (uint8_t)waiting;
            if (++within == inner) {
                within = 0;
                if (++window == windows) window = 0;
            }
        }
        if (filled) *out = (uint8_t)waiting;
    }
}

/* area: elements of an input plane; a window with no place in it gets the index -1, which torch's backward skips */
void decode(const uint8_t *bytes, const int64_t *starts, const int64_t *distances, int64_t *indices, int bits,
            int64_t count, int64_t windows, int64_t inner, int64_t area) {
    #pragma omp parallel for schedule(static) if (count > 4 * STRETCH)
    for (int64_t first = 0; first < count; first += STRETCH) {
        const uint8_t *in = bytes + first / 8 * bits;
        uint64_t waiting = 0;
        int filled = 0;
        int64_t end = first + STRETCH < count ? first + STRETCH : count;
        int64_t window = first / inner % windows, within = first % inner;
        for (int64_t k = first; k < end; k++) {
            for (; filled < bits; filled += 8) waiting |= (uint64_t)*in++ << filled;
            int64_t index = starts[window] + distances[waiting & ((1ull << bits) - 1)];
            indices[k] = index >= 0 && index < area ? index : -1;
            waiting >>= bits;
            filled -= bits;
            if (++within == inner) {
                within = 0;
                if (++window == windows) window = 0;
            }
        }
    }
}

/* A unit is a plane or, where channels come last, a sample of `inner` channels. Windows are added in the order in which
   torch adds them, row by row. */
#define SCATTER(name, number)                                                                                     \
    void name(const number *gradient, const uint8_t *bytes, const int64_t *starts, const int64_t *distances,      \
              number *result, int bits, int64_t units, int64_t windows, int64_t inner, int64_t area) {            \
        _Pragma("omp parallel for schedule(static)")                                                              \
        for (int64_t unit = 0; unit < units; unit++) {                                                            \
            const number *in = gradient + unit * windows * inner;                                                 \
            number *out = result + unit * area * inner;                                                           \
            int64_t bit = unit * windows * inner * bits;                                                          \
            const uint8_t *byte = bytes + bit / 8;                                                                \
            uint64_t waiting = bit % 8 ? *byte++ >> (bit % 8) : 0;                                                \
            int filled = bit % 8 ? 8 - (int)(bit % 8) : 0;                                                        \
            memset(out, 0, area * inner * sizeof(number));                                                        \
            for (int64_t window = 0; window < windows; window++)                                                  \
                for (int64_t c = 0; c < inner; c++) {                                                             \
                    for (; filled < bits; filled += 8) waiting |= (uint64_t)*byte++ << filled;                    \
                    int64_t index = starts[window] + distances[waiting & ((1ull << bits) - 1)];                   \
                    waiting >>= bits;                                                                             \
                    filled -= bits;                                                                               \
                    if (index >= 0 && index < area) out[index * inner + c] += in[window * inner + c];             \
                }                                                                                                 \
        }                                                                                                         \
    }
SCATTER(scatter_float, float)
SCATTER(scatter_double, double)
"""

_ENCODE = (c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int64, c_int64, c_int64)
_DECODE = (c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int64, c_int64, c_int64, c_int64)
_SCATTER = (c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int, c_int64, c_int64, c_int64, c_int64)
_SCATTERS = {torch.float32: "scatter_float", torch.float64: "scatter_double"}
_CHUNK = 1 << 20  # windows whose 64-bit indices exist at once, as far as whole planes allow

_forward = torch.ops.aten.max_pool2d_with_indices.default
_backward = torch.ops.aten.max_pool2d_with_indices_backward.grad_input


def bits_of_code(kernel: Sequence[int]) -> int:
    """Return the number of bits that distinguish the places of a window."""
    return (prod(kernel) - 1).bit_length()


def bytes_of_codes(count: int, kernel: Sequence[int]) -> int:
    """Return the bytes of the codes of a number of windows."""
    return -(-count * bits_of_code(kernel) // 8)


def window_starts(size: Sequence[int], width: int, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Return the start of each window of a plane, as an index into an input plane of a width: int64 [prod(size)].

    size: rows and columns of the output. Starts are negative where padding goes before the plane's first element.
    """
    rows = torch.arange(size[0], device="cpu") * stride[0] - padding[0]
    columns = torch.arange(size[1], device="cpu") * stride[1] - padding[1]
    return (rows[:, None] * width + columns).flatten()


def place_distances(kernel: Sequence[int], dilation: Sequence[int], width: int) -> Tensor:
    """Return the distance of each place from the start of its window: int64 [kh * kw]."""
    return window_starts(kernel, width, dilation, (0, 0))


def code_table(distances: Tensor) -> Tensor:
    """Return the inverse of `place_distances`: the code of each distance, and 0 for distances that belong to no place.

    Two places can share a distance where a window is wider than the plane; either code leads back to the same index.
    """
    table = distances.new_zeros(int(distances.max()) + 1)
    table[distances] = torch.arange(len(distances), device="cpu")
    return table


def encode_plainly(indices: Tensor, starts: Tensor, table: Tensor, bits: int, inner: int) -> Tensor:
    """Return the packed codes of indices (int64, flat, in the order of the output in memory), in plain torch."""
    device = indices.device
    distances = indices.view(-1, len(starts), inner) - starts.to(device)[:, None]
    # torch on CUDA gives the plane's first place for a channels-last window of -inf alone: any code is right there
    codes = table.to(device)[distances.clamp_(0, len(table) - 1)].view(-1, 1)
    return pack_plainly((codes >> torch.arange(bits, device=device)).bitwise_and_(1).flatten())


def decode_plainly(
    codes: Tensor, starts: Tensor, distances: Tensor, bits: int, inner: int, area: int, count: int
) -> Tensor:
    """Return the inverse of `encode_plainly` for `count` indices, -1 for those that lie behind the plane."""
    device = codes.device
    weights = 1 << torch.arange(bits, device=device)
    numbers = (unpack_plainly(codes, count * bits).view(count, bits) * weights).sum(1)
    indices = (distances.to(device)[numbers].view(-1, len(starts), inner) + starts.to(device)[:, None]).flatten()
    return torch.where(indices < area, indices, -1)


def _encode(indices: Tensor, starts: Tensor, table: Tensor, bits: int, inner: int) -> Tensor:
    run = native(SOURCE, "encode", _ENCODE) if indices.device.type == "cpu" else None
    if run is None:
        return encode_plainly(indices, starts, table, bits, inner)
    count = len(indices)
    codes = torch.empty(-(-count * bits // 8), dtype=torch.uint8)
    run(pointer(indices), pointer(starts), pointer(table), pointer(codes), bits, count, len(starts), inner)
    return codes


def _decode(codes: Tensor, starts: Tensor, distances: Tensor, bits: int, inner: int, area: int, count: int) -> Tensor:
    run = native(SOURCE, "decode", _DECODE) if codes.device.type == "cpu" else None
    if run is None:
        return decode_plainly(codes, starts, distances, bits, inner, area, count)
    indices = torch.empty(count, dtype=torch.int64)
    arguments = (pointer(codes), pointer(starts), pointer(distances), pointer(indices))
    run(*arguments, bits, count, len(starts), inner, area)
    return indices


def _units(tensor: Tensor, channels_last: bool) -> Tensor:
    """Return a view whose first dimension can be cut anywhere: planes, or samples if channels come last."""
    if channels_last:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous().view(prod(tensor.shape[:-2]), *tensor.shape[-2:])


def _cuts(units: int, windows: int) -> Iterator[tuple[slice, slice]]:
    """Cut units of `windows` windows each into slices, with the slices of their windows, which start at whole bytes."""
    step = 8 // gcd(8, windows)
    step *= max(1, _CHUNK // (windows * step))
    for start in range(0, units, step):
        end = min(start + step, units)
        yield slice(start, end), slice(start * windows, end * windows)


def _pool(
    x: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    channels_last: bool | None = None,
) -> tuple[Tensor, Tensor]:
    window = (kernel, stride, padding, dilation, ceil_mode)
    like = _pooled_like(x, *window)
    if channels_last == like.is_contiguous():
        x = laid_out(x, list(torch.empty(x.shape, device="meta", memory_format=_format(channels_last)).stride()))  # pyright: ignore
        like = _pooled_like(x, *window)
    y = torch.empty_strided(like.shape, like.stride(), dtype=x.dtype, device=x.device)
    channels_last = not like.is_contiguous()
    bits, inner = bits_of_code(kernel), like.shape[1] if channels_last else 1
    codes = torch.empty(bytes_of_codes(y.numel(), kernel), dtype=torch.uint8, device=x.device)
    sources, targets = _units(x, channels_last), _units(y, channels_last)
    fast = triton_version(__name__, x.device)
    if fast and bits <= fast.MOST_BITS:
        fast.pool(sources, targets, codes, inner, kernel, stride or kernel, padding, dilation)
        return y, codes
    starts = window_starts(like.shape[-2:], x.shape[-1], stride or kernel, padding)
    table = code_table(place_distances(kernel, dilation, x.shape[-1]))
    for units, windows in _cuts(len(sources), prod(targets.shape[1:])):
        part, indices = _forward(sources[units], *window)
        targets[units] = part
        packed = _encode(flat(indices), starts, table, bits, inner)
        codes[windows.start * bits // 8 :][: len(packed)] = packed
    return y, codes


def _pooled_like(x: Tensor, *window: object) -> Tensor:
    """Return an example of torch's output without data; torch's own kernel raises its errors here."""
    return _forward(x.new_empty(0, device="meta").new_empty_strided(x.shape, x.stride()), *window)[0]


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _pool_shapes(x, kernel, stride, padding, dilation, ceil_mode, channels_last=None):
    y = _forward(x, kernel, stride, padding, dilation, ceil_mode)[0]
    return y, x.new_empty((bytes_of_codes(y.numel(), kernel),), dtype=torch.uint8)


def _pool_backward(
    gradient: Tensor,
    codes: Tensor,
    input_size: list[int],
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    channels_last: bool,
) -> Tensor:
    result = _pool_backward_shapes(gradient, codes, input_size, None, None, None, None, None, channels_last)
    bits, inner = bits_of_code(kernel), gradient.shape[1] if channels_last else 1
    sources, targets = _units(gradient, channels_last), _units(result, channels_last)
    fast = triton_version(__name__, gradient.device)
    if fast and bits <= fast.MOST_BITS:
        fast.pool_backward(sources, codes, targets, inner, kernel, stride or kernel, padding, dilation)
        return result
    starts = window_starts(gradient.shape[-2:], input_size[-1], stride or kernel, padding)
    distances = place_distances(kernel, dilation, input_size[-1])
    # codes that no window has lead nowhere, so that no input makes it write outside of the result
    nowhere = distances.new_full((2**bits - len(distances),), 2**62)
    distances = torch.cat((distances, nowhere))
    area = input_size[-2] * input_size[-1]
    name = _SCATTERS.get(gradient.dtype)
    run = native(SOURCE, name, _SCATTER) if name and gradient.device.type == "cpu" else None
    if run is not None:
        tensors = (sources, codes, starts, distances, targets)
        run(*map(pointer, tensors), bits, len(sources), len(starts), inner, area)
        return result
    for units, windows in _cuts(len(sources), prod(sources.shape[1:])):
        source, target = sources[units], targets[units]
        part_codes = codes[windows.start * bits // 8 : -(-windows.stop * bits // 8)]
        indices = torch.empty_like(source, dtype=torch.int64)
        flat(indices).copy_(_decode(part_codes, starts, distances, bits, inner, area, source.numel()))
        # torch's backward reads only the shape of the input, which the target has too
        _backward(source, target, kernel, stride, padding, dilation, ceil_mode, indices, grad_input=target)
    return result


def _pool_backward_shapes(gradient, codes, input_size, kernel, stride, padding, dilation, ceil_mode, channels_last):
    lies = _format(channels_last)
    return torch.empty(input_size, dtype=gradient.dtype, device=gradient.device, memory_format=lies)


max_pool2d_codes = define(
    "max_pool2d_codes(Tensor x, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, bool ceil_mode,"
    " bool? channels_last=None) -> (Tensor, Tensor)",
    _pool,
    _pool_shapes,
)
"""x [N, C, H, W] or [C, H, W] → aten.max_pool2d_with_indices' y, and the codes of its indices.

The codes are uint8 [ceil(b y.numel() / 8)], b = ceil(log2(kh kw)). An empty stride is the kernel's size.
channels_last: whether y is planned to be channels-last and not contiguous, which orders the codes; an x that would make
    it otherwise is copied (`laid_out`).
"""

max_pool2d_backward_from_codes = define(
    "max_pool2d_backward_from_codes(Tensor gradient, Tensor codes, int[] input_size, int[2] kernel, int[2] stride,"
    " int[2] padding, int[2] dilation, bool ceil_mode, bool channels_last) -> Tensor",
    _pool_backward,
    _pool_backward_shapes,
)
"""The gradient of x, input_size, from that of y and the codes: aten.max_pool2d_with_indices_backward's, to the bit.

channels_last: whether x was channels-last and not contiguous; the result then is, too.

Where a dilated window has no place inside the input at all, torch's backward writes outside of its result; this one
writes nothing.
"""
