"""Values that are compared with two thresholds, kept in two bits for each element: below, between, above, or NaN.

Kept: 2 ceil(n / 8) bytes for n elements, where eager keeps 4 n in float32: a plane of bits for low ≤ x and one for x ≤
high. Only NaN is in neither, so that it is restored on every device. Apart from the bits this is plain torch, except on
a GPU.
"""

from __future__ import annotations

from functools import cache
from math import isfinite, nan

import torch
from torch import Tensor

from ..backend.library import define
from ..backend.planned_layouts import laid_out
from ..backend.triton_dispatch import triton_version
from ..codec import Codec
from ..packing.bits import bytes_of_bits, dense, flat, pack_bits, unpack_bits
from . import threshold_bits
from .threshold_bits import DTYPES, Thresholds


@cache
def class_codec(low: float, high: float, dtype: torch.dtype) -> Codec | None:
    """Return the codec for a value that is only compared by low ≤ x and by x ≤ high.

    None where the device decides how it compares.
    """
    rounded = Thresholds(low, high).rounded_to(dtype) if dtype in DTYPES else None
    if rounded is None or not isfinite(low) or not isfinite(high) or rounded.low > rounded.high:
        return None
    below, above = rounded.low - max(1.0, abs(low)), rounded.high + max(1.0, abs(high))
    if not all(isfinite(float(torch.tensor(number, dtype=dtype))) for number in (below, above)):
        return None
    return Codec(
        f"2-bit {_describe_thresholds(rounded.low, rounded.high)}",
        pack_classes,
        unpack_classes,
        (dtype,),
        encode_options=(rounded.low, rounded.high),
        decode_options=(below, rounded.low, above),
        needs_dtype=True,
        decodes_to_placeholder=True,
    )


def _describe_thresholds(low: float, high: float) -> str:
    """Return the comparisons as text; zeros without their signs."""
    return f"x against {low + 0.0:g}" if low == high else f"{low + 0.0:g} ≤ x, x ≤ {high + 0.0:g}"


def _pack(x: Tensor, low: float, high: float, stride: list[int] | None = None) -> Tensor:
    x = laid_out(x, stride)
    if not dense(x):
        x = x.contiguous()
    x = flat(x.detach())
    if fast := triton_version(threshold_bits.__name__, x.device):
        return fast.pack_classes(x, low, high)
    return torch.cat([pack_bits(x >= low), pack_bits(x <= high)])


def _unpack(
    code: Tensor, below: float, between: float, above: float, size: list[int], stride: list[int], dtype: torch.dtype
) -> Tensor:
    y = torch.empty_strided(size, stride, dtype=dtype, device=code.device)
    elements, plane_bytes = flat(y), bytes_of_bits(y.numel())
    if code.dtype != torch.uint8 or len(code) != 2 * plane_bytes:
        raise ValueError(
            f"the code is {code.dtype} of {len(code)} elements, for {y.numel()} times two bits: decode with the size "
            "with which it was encoded"
        )
    if fast := triton_version(threshold_bits.__name__, y.device):
        fast.unpack_classes(code, torch.tensor([nan, above, below, between], dtype=dtype), y)
        return y
    not_below, not_above = code.split(plane_bytes) if len(code) else (code, code)
    elements.fill_(between)
    for bits, side in (
        (~not_below & not_above, below),
        (not_below & ~not_above, above),
        (~(not_below | not_above), nan),
    ):
        elements.masked_fill_(unpack_bits(bits, [len(elements)], [1]), side)
    return y


pack_classes = define(
    "pack_classes(Tensor x, float low, float high, int[]? stride=None) -> Tensor",
    _pack,
    lambda x, low, high, stride=None: x.new_empty((2 * bytes_of_bits(x.numel()),), dtype=torch.uint8),
)
"""x (dense) → uint8 [2 ceil(n / 8)]: which elements are at least `low`, then which are at most `high`.

stride: the planned stride of x (`laid_out`).
"""

unpack_classes = define(
    "unpack_classes(Tensor code, float below, float between, float above, int[] size, int[] stride, ScalarType dtype)"
    " -> Tensor",
    _unpack,
    lambda code, below, between, above, size, stride, dtype: torch.empty_strided(
        size, stride, dtype=dtype, device=code.device
    ),
)
"""Returns a number for each element below `low`, between and above `high`, and NaN for NaN: of a size, stride and
type.
"""
