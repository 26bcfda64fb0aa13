"""`pooling.py` in Triton: the codes straight from the input, and the input's gradient straight from them.

No 64-bit index exists, not even for a few planes. Both kernels compute as torch's on CUDA, in the same order
(ATen/native/cuda/DilatedMaxPool2d.cu). Forward takes a window's places row by row, the first of equal ones and the last
NaN. Backward adds, for each place of the input, the gradients of the windows over it row by row, in single precision at
least. One case differs: for a window that holds nothing but -inf, torch's kernel for channels-last inputs gives the
input's first place, which is usually outside of it. Here it is the window's first place.

Places are computed as in `pooling.py`: unit, window and `inner` elements in a row, as channels-last has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ..backend.elements_triton import computed_dtype, elements_of, numbers_here, store_groups
from ..backend.triton_launch import launch, needs_int64
from ..packing.packed_codes_triton import store_codes

MOST_BITS = 8  # of a code: eight codes are put together in 64 bits
_GROUPS = 32  # of eight windows, to a program
_BLOCK = 256  # places of the input, to a program


@triton.jit
def _pool(
    x,
    y,
    codes,
    count,
    height,
    width,
    rows,
    columns,
    inner,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    BITS: tl.constexpr,
    COMPUTED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    group = numbers_here(INT64, BLOCK)
    element = elements_of(group)
    window, within = element // inner, element % inner
    top = window // columns % rows * stride_h - padding_h
    left = window % columns * stride_w - padding_w
    plane = x + window // columns // rows * height * width * inner + within
    # where nothing exceeds -inf, the first place inside of the input is the largest
    first_h = tl.minimum((tl.maximum(-top, 0) + dilation_h - 1) // dilation_h, KERNEL_H - 1)
    first_w = tl.minimum((tl.maximum(-left, 0) + dilation_w - 1) // dilation_w, KERNEL_W - 1)
    code = (first_h * KERNEL_W + first_w).to(tl.int32)
    most = tl.full([BLOCK, 8], float("-inf"), tl.float32).to(x.dtype.element_ty)
    for i in range(KERNEL_H):
        for j in range(KERNEL_W):
            h, w = top + i * dilation_h, left + j * dilation_w
            inside = (element < count) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            value = tl.load(plane + (h * width + w) * inner, mask=inside, other=float("-inf"))
            wide = value.to(COMPUTED)
            larger = (wide > most.to(COMPUTED)) | (wide != wide)
            most = tl.where(larger, value, most)
            code = tl.where(larger, i * KERNEL_W + j, code)
    store_groups(y, most, group, count)
    if BITS > 0:
        store_codes(codes, code, group, count, BITS)


@triton.jit
def _pool_backward(
    gradient,
    codes,
    result,
    count,
    height,
    width,
    rows,
    columns,
    inner,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    OVER_H: tl.constexpr,
    OVER_W: tl.constexpr,
    BITS: tl.constexpr,
    COMPUTED: tl.constexpr,
    INT64: tl.constexpr,
    BLOCK: tl.constexpr,
):
    element = numbers_here(INT64, BLOCK)
    place, within = element // inner, element % inner
    unit, h, w = place // width // height, place // width % height, place % width
    extent_h, extent_w = (KERNEL_H - 1) * dilation_h + 1, (KERNEL_W - 1) * dilation_w + 1
    # the first window that reaches the place, and the first one that begins behind it
    first_row = (tl.maximum(h + padding_h - extent_h, -stride_h) + stride_h) // stride_h
    first_column = (tl.maximum(w + padding_w - extent_w, -stride_w) + stride_w) // stride_w
    end_row = tl.minimum((h + padding_h) // stride_h + 1, rows)
    end_column = tl.minimum((w + padding_w) // stride_w + 1, columns)
    total = tl.zeros([BLOCK], COMPUTED)
    for i in range(OVER_H):
        for j in range(OVER_W):
            row, column = first_row + i, first_column + j
            over = (element < count) & (row < end_row) & (column < end_column)
            window = ((unit * rows + row) * columns + column) * inner + within
            code = tl.zeros([BLOCK], tl.int32)
            if BITS > 0:
                bit = window * BITS
                low = tl.load(codes + bit // 8, mask=over, other=0).to(tl.int32)
                high = tl.load(codes + bit // 8 + 1, mask=over & (bit % 8 + BITS > 8), other=0).to(tl.int32)
                code = ((low | (high << 8)) >> (bit % 8).to(tl.int32)) & ((1 << BITS) - 1)
            held_h = row * stride_h - padding_h + code // KERNEL_W * dilation_h
            held_w = column * stride_w - padding_w + code % KERNEL_W * dilation_w
            held = over & (code < KERNEL_H * KERNEL_W) & (held_h * width + held_w == h * width + w)
            total += tl.load(gradient + window, mask=held, other=0).to(COMPUTED)
    tl.store(result + element, total.to(result.dtype.element_ty), mask=element < count)


def pool(
    x: Tensor,
    y: Tensor,
    codes: Tensor,
    inner: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Fill in y and the codes, uint8 [ceil(b y.numel() / 8)] with at most MOST_BITS bits a code.

    x: units [U, H, W] or, with inner channels that come last in memory, [N, C, H, W]; y likewise.
    """
    bits, count = (kernel[0] * kernel[1] - 1).bit_length(), y.numel()
    launch(
        _pool,
        -(-count // (8 * _GROUPS)),
        x.device,
        *(x, y, codes, count),
        *(*x.shape[-2:], *y.shape[-2:], inner, *stride, *padding, *dilation),
        KERNEL_H=kernel[0],
        KERNEL_W=kernel[1],
        BITS=bits,
        COMPUTED=computed_dtype(x),
        INT64=needs_int64(max(x.numel(), count * max(1, bits))),
        BLOCK=_GROUPS,
    )


def pool_backward(
    gradient: Tensor,
    codes: Tensor,
    result: Tensor,
    inner: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Fill in the gradient of x from that of y, each laid out as in `pool`."""
    bits, count = (kernel[0] * kernel[1] - 1).bit_length(), result.numel()
    # the most windows that lie over one place
    over = [(kernel[i] - 1) * dilation[i] // stride[i] + 1 for i in range(2)]
    launch(
        _pool_backward,
        -(-count // _BLOCK),
        result.device,
        *(gradient, codes, result, count),
        *(*result.shape[-2:], *gradient.shape[-2:], inner, *stride, *padding, *dilation),
        KERNEL_H=kernel[0],
        KERNEL_W=kernel[1],
        OVER_H=over[0],
        OVER_W=over[1],
        BITS=bits,
        COMPUTED=computed_dtype(result),
        INT64=needs_int64(max(count, gradient.numel() * max(1, bits))),
        BLOCK=_BLOCK,
    )
