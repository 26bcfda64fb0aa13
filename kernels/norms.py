"""Backward of layer and RMS normalization from what they normalized to: the input need not be kept.

Kept: x̂ = (x - mean) r, or x r for RMS, as large as the input, and r, one number to a row: the reciprocal of the row's
deviation, epsilon included. Where no affine map follows, x̂ is the output, which the next layer keeps anyway. Where one
does, y = γ x̂ + β, the output will do as long as each γ is well away from 0 (`recoverable`).

With g the gradient of y, and means over a row: dx = r (γ g - [mean(γ g)] - x̂ mean(γ g x̂)), the term in brackets for
layer normalization alone; dγ = Σ g x̂ and dβ = Σ g over the rows. They follow from the definitions in "Layer
Normalization" (Ba, Kiros and Hinton, 2016) and "Root Mean Square Layer Normalization" (Zhang and Sennrich, 2019);
epsilon is in r and changes neither.

Errors in float32: 1e-6 of each gradient's norm, from an x̂ that was rounded once. From an output, x̂ is as wrong as its
rounding makes it, 6e-8 (|x̂| + |β / γ|).
"""

from __future__ import annotations

from ctypes import c_int, c_int64, c_void_p
from math import prod

import torch
from torch import Tensor

from .backend.library import define
from .backend.native import native, pointer
from .backend.triton_dispatch import triton_version

SOURCE = r"""
#include <stdint.h>
#include <string.h>

enum { STRETCH = 512, GROUP = 16 };

/* what a row is made of: x̂ = (y - shift) * inverse */
typedef struct {
    const float *weight, *shift, *inverse;
    int64_t columns;
} Affine;

/* the sums of γ g and γ g x̂ over a row; and, if asked for, g x̂ and g added to those of other rows */
static void totals(const float *g, const float *y, Affine a, float *by_weight, float *by_bias, double *both) {
    both[0] = both[1] = 0;
    for (int64_t start = 0; start < a.columns; start += STRETCH) {
        int64_t end = start + STRETCH < a.columns ? start + STRETCH : a.columns;
        float plain = 0, along = 0;
        if (by_weight) {
            #pragma omp simd reduction(+ : plain, along)
            for (int64_t i = start; i < end; i++) {
                float x = (y[i] - a.shift[i]) * a.inverse[i], weighed = g[i] * a.weight[i];
                plain += weighed;
                along += weighed * x;
                by_weight[i] += g[i] * x;
                by_bias[i] += g[i];
            }
        } else {
            #pragma omp simd reduction(+ : plain, along)
            for (int64_t i = start; i < end; i++) {
                float x = (y[i] - a.shift[i]) * a.inverse[i], weighed = g[i] * a.weight[i];
                plain += weighed;
                along += weighed * x;
            }
        }
        both[0] += plain;
        both[1] += along;
    }
}

static void spread(const float *g, const float *y, float r, Affine a, const double *both, int centred, float *dx) {
    float plain = centred ? (float)(both[0] / a.columns) : 0, along = (float)(both[1] / a.columns);
    #pragma omp simd
    for (int64_t i = 0; i < a.columns; i++) {
        float x = (y[i] - a.shift[i]) * a.inverse[i];
        dx[i] = r * ((g[i] * a.weight[i] - plain) - x * along);
    }
}

static void fold(float *from, double *to, int64_t count) {
    #pragma omp simd
    for (int64_t i = 0; i < count; i++) to[i] += from[i];
    memset(from, 0, count * sizeof(float));
}

/* dx or sums may be NULL. sums, scratch: 2 x columns to each part, zeros; a part is a stretch of rows, and a thread's
   work. Sums over rows are taken in groups of GROUP, so that single precision is enough within them. */
void backward(const float *g, const float *y, const float *r, const float *weight, const float *shift,
              const float *inverse, float *dx, double *sums, float *scratch, int64_t rows, int64_t columns,
              int64_t parts, int centred) {
    Affine a = {weight, shift, inverse, columns};
    #pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float *own = sums ? scratch + part * 2 * columns : 0;
        int64_t start = rows * part / parts, end = rows * (part + 1) / parts;
        for (int64_t row = start; row < end; row++) {
            const float *row_g = g + row * columns, *row_y = y + row * columns;
            double both[2];
            totals(row_g, row_y, a, own, own ? own + columns : 0, both);
            if (dx) spread(row_g, row_y, r[row], a, both, centred, dx + row * columns);
            if (own && ((row - start) % GROUP == GROUP - 1 || row == end - 1))
                fold(own, sums + part * 2 * columns, 2 * columns);
        }
    }
}
"""

_BACKWARD = (*[c_void_p] * 9, *[c_int64] * 3, c_int)
_CHUNK = 1 << 18  # elements that the plain version works on at once
INPUT, WEIGHT, BIAS = 1, 2, 4  # bits of a mask: which gradients are wanted

Gradients = tuple[Tensor, Tensor, Tensor]


def recoverable(weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether x̂ = (y - β) / γ loses little: at most 16 roundings more than x̂ itself would have.

    That is so if |β| <= 16 |γ| everywhere and no γ is 0 or next to it. A step of training can change it.
    """
    if weight is None:
        return bias is None or bool((bias.abs() <= 16).all())
    away = weight.abs() >= 2.0**-100 if weight.dtype != torch.float16 else weight.abs() >= 2.0**-13
    return bool(away.all()) and (bias is None or bool((bias.abs() <= 16 * weight.abs()).all()))


def normalized_shape(normalized: Tensor, reciprocal_deviation: Tensor, weight: Tensor | None) -> list[int]:
    """The shape over which each row was normalized: the weight's, or the shortest that leaves so many rows."""
    if weight is not None:
        return list(weight.shape)
    rows, kept = reciprocal_deviation.numel(), 1
    while kept < normalized.dim() and prod(normalized.shape[:-kept]) != rows:
        kept += 1
    return list(normalized.shape[-kept:])


def backward_plainly(
    g: Tensor,
    y: Tensor,
    r: Tensor,
    affine: tuple[Tensor, Tensor, Tensor],
    dx: Tensor | None,
    sums: Tensor,
    centred: bool,
) -> None:
    """In plain torch, a stretch of rows at a time; in g's type, or in float32 if that is shorter.

    g, y: [rows, columns]. r: [rows]. affine: weight, shift and inverse, each [columns]. Writes dx, like g, and adds dγ
    and dβ to sums, float64 [2, columns].
    """
    wide = torch.promote_types(g.dtype, torch.float32)
    weight, shift, inverse = (part.to(wide) for part in affine)
    step = max(1, _CHUNK // max(1, g.shape[1]))
    for start in range(0, len(g), step):
        here = slice(start, start + step)
        gradient, x = g[here].to(wide), (y[here].to(wide) - shift) * inverse
        sums[0] += (gradient * x).sum(0, dtype=torch.float64)
        sums[1] += gradient.sum(0, dtype=torch.float64)
        if dx is not None:
            weighed = gradient * weight
            along = (weighed * x).mean(1, keepdim=True)
            plain = weighed.mean(1, keepdim=True) if centred else 0
            dx[here] = (weighed - plain - x * along) * r[here, None].to(wide)


def _natively(
    run,
    g: Tensor,
    y: Tensor,
    r: Tensor,
    affine: tuple[Tensor, Tensor, Tensor],
    dx: Tensor | None,
    centred: bool,
    summed: bool,
) -> Tensor | None:
    """`backward_plainly` in C, for float32; returns the sums, if they are asked for."""
    rows, columns = g.shape
    parts = max(1, min(rows, torch.get_num_threads()))
    sums = torch.zeros(parts, 2, columns, dtype=torch.float64, device="cpu") if summed else None
    scratch = torch.zeros(parts, 2, columns, dtype=torch.float32, device="cpu") if summed else None
    tensors = (g, y, r, *affine, dx, sums, scratch)
    run(*[None if tensor is None else pointer(tensor) for tensor in tensors], rows, columns, parts, centred)
    return None if sums is None else sums.sum(0)


def _backward(
    gradient: Tensor,
    y: Tensor,
    r: Tensor,
    weight: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    centred: bool,
    mask: int,
) -> Gradients:
    """From y = scale x̂ + shift, either of which may be absent."""
    results = _shapes(gradient, y, r, weight, centred, mask)
    columns = prod(normalized_shape(y, r, weight))
    g, rows, r = (tensor.contiguous() for tensor in (gradient, y, r))
    g, rows, r = g.view(r.numel(), columns), rows.view(r.numel(), columns), r.view(-1)
    one = torch.ones(columns, dtype=y.dtype, device=y.device)
    affine = (
        one if weight is None else weight.contiguous().view(-1),
        torch.zeros_like(one) if shift is None else shift.contiguous().view(-1),
        one if scale is None else scale.contiguous().view(-1).reciprocal(),
    )
    dx = results[0].view(g.shape) if mask & INPUT else None
    summed = bool(mask & (WEIGHT | BIAS))
    fast = triton_version(__name__, y.device)
    single = y.device.type == "cpu" and {tensor.dtype for tensor in (g, rows, r, *affine)} == {torch.float32}
    run = native(SOURCE, "backward", _BACKWARD) if single else None
    if fast and columns <= fast.MOST_COLUMNS:
        sums = fast.backward(g, rows, r, affine, dx, centred, summed)
    elif run is not None:
        sums = _natively(run, g, rows, r, affine, dx, centred, summed)
    else:
        sums = torch.zeros(2, columns, dtype=torch.float64, device=y.device)
        backward_plainly(g, rows, r, affine, dx, sums, centred)
    for result, bit, place in ((results[1], WEIGHT, 0), (results[2], BIAS, 1)):
        if mask & bit and sums is not None:
            result.view(-1).copy_(sums[place])
    return results


def _shapes(gradient, normalized, reciprocal_deviation, weight, centred, mask) -> Gradients:
    shape = normalized_shape(normalized, reciprocal_deviation, weight)
    dtype = gradient.dtype if weight is None else weight.dtype
    sizes = (list(gradient.shape), shape, shape)
    return tuple(
        gradient.new_empty(size if mask & bit else [0], dtype=gradient.dtype if bit == INPUT else dtype)
        for size, bit in zip(sizes, (INPUT, WEIGHT, BIAS), strict=True)
    )  # pyright: ignore[reportReturnType]


def _from_normalized(gradient, normalized, reciprocal_deviation, weight, centred, mask) -> Gradients:
    return _backward(gradient, normalized, reciprocal_deviation, weight, None, None, centred, mask)


def _from_output(gradient, output, reciprocal_deviation, weight, bias, centred, mask) -> Gradients:
    return _backward(gradient, output, reciprocal_deviation, weight, bias, weight, centred, mask)


layer_norm_backward_from_normalized = define(
    "layer_norm_backward_from_normalized(Tensor gradient, Tensor normalized, Tensor reciprocal_deviation,"
    " Tensor? weight, bool centred, int mask) -> (Tensor, Tensor, Tensor)",
    _from_normalized,
    _shapes,
)
"""The gradients of x (like gradient, contiguous), weight and bias, from x̂ (of gradient's shape) and r, a number to each
row: x̂'s shape, with 1 for the dimensions over which it is normalized. weight: γ, of those dimensions, zeros welcome;
None for none. centred: layer normalization; otherwise RMS. mask: the sum of INPUT, WEIGHT and BIAS for the gradients
that are wanted; the others are empty."""

layer_norm_backward_from_output = define(
    "layer_norm_backward_from_output(Tensor gradient, Tensor output, Tensor reciprocal_deviation, Tensor weight,"
    " Tensor? bias, bool centred, int mask) -> (Tensor, Tensor, Tensor)",
    _from_output,
    lambda gradient, output, reciprocal_deviation, weight, bias, centred, mask: _shapes(
        gradient, output, reciprocal_deviation, weight, centred, mask
    ),
)
"""The same from the output γ x̂ + β, where γ and β are `recoverable`; x̂ is not made as a whole."""
