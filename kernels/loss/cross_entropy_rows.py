"""The cross-entropy of rows of logits: the logits are turned into its gradient, in place.

Formulas: those of `torch.nn.functional.cross_entropy` (ATen/native/LossNLL.cpp). For a row with target t and logits x,
p = softmax(x), classes' weights w (or 1), smoothing s:

    a_c  = (1 - s) w_t [c = t] + s w_c / V         loss = -sum_c a_c log p_c         dloss/dx_c = p_c sum_k a_k - a_c

An ignored row has loss and gradient 0. The mean divides by the sum of w_t over the rows that are not ignored.
"""

from __future__ import annotations

from ctypes import c_double, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from ..backend.native import native, pointer
from ..backend.triton_dispatch import triton_version

SOURCE = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 1024 };  /* elements summed in float before they go into a double */

/* e^x for x <= 0, within 1 unit in the last place; 0 where it would be below 1.2e-38, the smallest normal number.
   The polynomial is that of Cephes' expf. */
static inline float exponential(float x) {
    float held = x < -87.33f ? -87.33f : x;                    /* NaN stays */
    float shifted = held * 1.44269504088896341f + 12582912.0f; /* the nearest whole number lies in the last bits */
    float whole = shifted - 12582912.0f;
    float rest = held - whole * 0.693359375f - whole * -2.12194440e-4f;
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3f800000u;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.33f ? 0.0f : series * power;
}

static float greatest(const float *x, int64_t classes) {
    float most = -INFINITY;
    #pragma omp simd reduction(max : most)
    for (int64_t c = 0; c < classes; c++) most = x[c] > most ? x[c] : most;
    return most;
}

/* sum of w (x - most), w being 1 without weights */
static double weighted(const float *x, const float *w, float most, int64_t classes) {
    double sum = 0;
    for (int64_t start = 0; start < classes; start += BLOCK) {
        int64_t end = start + BLOCK < classes ? start + BLOCK : classes;
        float part = 0;
        if (w) {
            #pragma omp simd reduction(+ : part)
            for (int64_t c = start; c < end; c++) part += w[c] * (x[c] - most);
        } else {
            #pragma omp simd reduction(+ : part)
            for (int64_t c = start; c < end; c++) part += x[c] - most;
        }
        sum += part;
    }
    return sum;
}

/* x to e^(x - most), and their sum */
static double exponentials(float *x, float most, int64_t classes) {
    double sum = 0;
    for (int64_t start = 0; start < classes; start += BLOCK) {
        int64_t end = start + BLOCK < classes ? start + BLOCK : classes;
        float part = 0;
        #pragma omp simd reduction(+ : part)
        for (int64_t c = start; c < end; c++) {
            float y = exponential(x[c] - most);
            x[c] = y;
            part += y;
        }
        sum += part;
    }
    return sum;
}

/* x to factor x - share w */
static void scale(float *x, const float *w, float factor, float share, int64_t classes) {
    if (share == 0) {
        #pragma omp simd
        for (int64_t c = 0; c < classes; c++) x[c] *= factor;
    } else if (w) {
        #pragma omp simd
        for (int64_t c = 0; c < classes; c++) x[c] = x[c] * factor - share * w[c];
    } else {
        #pragma omp simd
        for (int64_t c = 0; c < classes; c++) x[c] = x[c] * factor - share;
    }
}

/* Logits x [rows, classes] to the gradient of the loss; losses [rows] are those before the mean.
   of_targets [rows]: w_t. w [classes] or null. inverse: 1 / what the mean divides by. */
void softmax_rows(float *logits, const int64_t *targets, const float *of_targets, const float *w, double weight_sum,
                  double inverse, double smoothing, int64_t ignored, float *losses, int64_t rows, int64_t classes) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float *x = logits + i * classes;
        int64_t target = targets[i];
        if (target == ignored) {
            memset(x, 0, classes * sizeof(float));
            losses[i] = 0;
            continue;
        }
        double sharp = (1 - smoothing) * of_targets[i], share = smoothing / classes;
        float most = greatest(x, classes);
        double at_target = (double)x[target] - most, loss = 0;
        double spread = smoothing > 0 ? weighted(x, w, most, classes) : 0;
        double sum = exponentials(x, most, classes), logarithm = log(sum);
        if (smoothing < 1) loss += sharp * (logarithm - at_target);
        if (smoothing > 0) loss += share * (weight_sum * logarithm - spread);
        losses[i] = (float)loss;
        double factor = (sharp + share * weight_sum) * inverse / sum;
        scale(x, w, (float)factor, (float)(share * inverse), classes);
        x[target] -= (float)(sharp * inverse);
    }
}
"""

_ARGUMENTS = (*(c_void_p,) * 4, *(c_double,) * 3, c_int64, c_void_p, c_int64, c_int64)


class Rows(NamedTuple):
    """The inputs of each row's loss apart from its logits; all but the targets are in the dtype of the computation.

    targets: int64 [N].
    of_targets: w_t [N] times the row's own weight, 0 where ignored.
    class_weight: w [V] or None.
    weight_sum: sum of w, or V.
    divisor: the number by which the reduction divides.
    """

    targets: Tensor
    of_targets: Tensor
    class_weight: Tensor | None
    weight_sum: Tensor
    divisor: Tensor
    smoothing: float
    ignored: int


def rows_of(
    target: Tensor,
    class_weight: Tensor | None,
    classes: int,
    *,
    mean: bool,
    ignored: int,
    smoothing: float,
    row_weight: Tensor | None,
    dtype: torch.dtype,
) -> Rows:
    """Return the rows of targets int64 [N], for the mean of their losses or for the sum.

    class_weight, row_weight: [V] and [N] if present, of any dtype.
    dtype: that of the computation.
    """
    ignores = target == ignored
    if class_weight is None:
        of_targets, weight_sum = (~ignores).to(dtype), target.new_tensor(classes, dtype=dtype)
    else:
        class_weight = class_weight.to(dtype).contiguous()
        of_targets = class_weight[target.masked_fill(ignores, 0)].masked_fill_(ignores, 0)
        weight_sum = class_weight.sum()
    divisor = of_targets.sum() if mean else of_targets.new_ones(())
    if row_weight is not None:
        of_targets = of_targets * row_weight.to(dtype)
    return Rows(target.contiguous(), of_targets, class_weight, weight_sum, divisor, smoothing, ignored)


def softmax_rows_plainly(logits: Tensor, rows: Rows, losses: Tensor) -> None:
    """Turn a chunk's logits [n, V] into the gradient of the loss, in place, and fill in losses [n]; plain torch."""
    ignored = rows.targets == rows.ignored
    at = rows.targets.masked_fill(ignored, 0)[:, None]
    classes, smoothing = logits.shape[1], rows.smoothing
    logits.sub_(logits.amax(1, keepdim=True))
    at_target = logits.gather(1, at)[:, 0]
    spread = None
    if smoothing > 0:
        spread = logits.sum(1) if rows.class_weight is None else logits.mv(rows.class_weight)
    sums = logits.exp_().sum(1)
    logarithm = sums.log()
    sharp, share = (1 - smoothing) * rows.of_targets, smoothing / classes
    torch.mul(sharp, logarithm - at_target, out=losses)
    if smoothing == 1:
        losses.zero_()
    factor = sharp
    if spread is not None:
        losses.add_(share * (rows.weight_sum * logarithm - spread))
        factor = sharp + share * rows.weight_sum
    losses.masked_fill_(ignored, 0)
    logits.mul_((factor / rows.divisor / sums)[:, None])
    if smoothing > 0:
        logits.sub_(share / rows.divisor * (1 if rows.class_weight is None else rows.class_weight))
    logits.scatter_add_(1, at, (sharp / -rows.divisor)[:, None])
    logits.masked_fill_(ignored[:, None], 0)


def softmax_rows(logits: Tensor, rows: Rows, losses: Tensor) -> None:
    """Run `softmax_rows_plainly`, in Triton or C if available; logits and losses are contiguous."""
    if fast := triton_version(__name__, logits.device):
        fast.softmax_rows(logits, *rows, losses)
        return
    single = logits.device.type == "cpu" and logits.dtype == torch.float32
    run = native(SOURCE, "softmax_rows", _ARGUMENTS) if single else None
    if run is None:
        softmax_rows_plainly(logits, rows, losses)
        return
    weights = None if rows.class_weight is None else pointer(rows.class_weight)
    inverse = float(torch.reciprocal(rows.divisor.double()))  # of 0 it is infinite, as in torch
    numbers = (float(rows.weight_sum), inverse, rows.smoothing, rows.ignored)
    operands = (pointer(logits), pointer(rows.targets), pointer(rows.of_targets), weights)
    run(*operands, *numbers, pointer(losses), *logits.shape)


def takes_16_bits(device: torch.device) -> bool:
    """Return whether `softmax_rows` takes logits in 16 bits on a device, to compute on them in float32."""
    return triton_version(__name__, device) is not None
