"""A linear layer and the cross-entropy of what it gives, some rows at a time: the logits never exist as a whole.

hidden [N, d] and weight [V, d] (and bias [V]) make logits [N, V]; only a chunk of rows of them exists at once, and the
gradients are computed in it before the next. So no product is computed twice, and backward only multiplies what
forward left by the incoming gradient.

Kept: the gradients themselves, N d + V d + V elements, where eager keeps log-probabilities of N V elements (and makes
their gradient as large beside them). At work: one chunk, about 4 MiB, and vectors of N or V elements.

Formulas: those of `torch.nn.functional.cross_entropy` (ATen/native/LossNLL.cpp). For a row with target t and logits x,
p = softmax(x), classes' weights w (or 1), smoothing s:

    a_c  = (1 - s) w_t [c = t] + s w_c / V         loss = -sum_c a_c log p_c         dloss/dx_c = p_c sum_k a_k - a_c

An ignored row has loss and gradient 0. The mean divides by the sum of w_t over the rows that are not ignored. Computing
gradients in forward, a chunk at a time: Hsu et al., "Liger Kernel" (arXiv:2410.10989).
"""

from __future__ import annotations

from ctypes import c_double, c_int64, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .library import define
from .native import native, pointer
from .triton_versions import triton_version

HIDDEN, WEIGHT, BIAS = 1, 2, 4  # bits of `gradients`
MEAN, SUM = 1, 2  # values of `reduction`, as ATen numbers them

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
# A step's time on one thread beside plain torch's, with N = 2048, d = 384, V = 8000: 1.15, 0.97, 0.85, 0.80 and 0.78 at
# 1, 2, 4, 8 and 16 MiB. Where other programs hold the cores, every product waits for its threads, and 4 MiB took 1.4.
_CHUNK_BYTES = 4 << 20
# Fewer rows leave the products waiting for weight: 1.31, 1.07, 0.97 and 0.88 at 16, 32, 64 and 128 rows, with N = 512,
# d = 384, V = 50257.
_LEAST_ROWS = 64


class _Rows(NamedTuple):
    """What the loss of each row depends on beside its logits.

    targets: int64 [N]. of_targets: w_t [N] times the row's own weight, 0 where ignored. class_weight: w [V] or None.
    weight_sum: sum of w, or V. divisor: what the reduction divides by. All but the targets in the dtype of the
    computation.
    """

    targets: Tensor
    of_targets: Tensor
    class_weight: Tensor | None
    weight_sum: Tensor
    divisor: Tensor
    smoothing: float
    ignored: int


def chunk_rows(count: int, bytes_per_row: int) -> int:
    """How many of N rows a chunk has: all chunks alike, about 4 MiB, but never under 64 rows."""
    most = max(_LEAST_ROWS, _CHUNK_BYTES // bytes_per_row)
    chunks = max(1, -(-count // most))
    return max(1, -(-count // chunks))


def linear_cross_entropy_plainly(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    logits_dtype: torch.dtype | None = None,
    row_weight: Tensor | None = None,
) -> Tensor:
    """The loss of `linear_cross_entropy` as torch computes it, all logits at once; its gradients are autograd's."""
    logits = functional.linear(hidden, weight, bias).to(logits_dtype or hidden.dtype)
    loss = functional.cross_entropy(
        logits,
        target,
        weight=class_weight,
        reduction={MEAN: "mean", SUM: "sum"}[reduction] if row_weight is None else "none",
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return loss if row_weight is None else (loss * row_weight).sum()


def softmax_rows_plainly(logits: Tensor, rows: _Rows, losses: Tensor) -> None:
    """Turns a chunk's logits [n, V] into the gradient of the loss, in place, and fills in losses [n]; plain torch."""
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


def _softmax_rows(logits: Tensor, rows: _Rows, losses: Tensor) -> None:
    if fast := triton_version("linear_cross_entropy", logits.device):
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


def _rows(
    target: Tensor,
    class_weight: Tensor | None,
    classes: int,
    reduction: int,
    ignored: int,
    smoothing: float,
    row_weight: Tensor | None,
    dtype: torch.dtype,
) -> _Rows:
    ignores = target == ignored
    if class_weight is None:
        of_targets, weight_sum = (~ignores).to(dtype), target.new_tensor(classes, dtype=dtype)
    else:
        class_weight = class_weight.to(dtype).contiguous()
        of_targets = class_weight[target.masked_fill(ignores, 0)].masked_fill_(ignores, 0)
        weight_sum = class_weight.sum()
    divisor = of_targets.sum() if reduction == MEAN else of_targets.new_ones(())
    if row_weight is not None:
        of_targets = of_targets * row_weight.to(dtype)
    return _Rows(target.contiguous(), of_targets, class_weight, weight_sum, divisor, smoothing, ignored)


def _results(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gradients: int):
    """The loss and the gradients, not filled in; one that is not wanted has no elements.

    Weight's is laid out like weight, so that a transposed view's gradient is one of a contiguous tensor.
    """
    return (
        hidden.new_empty((), dtype=dtype),
        hidden.new_empty(hidden.shape if gradients & HIDDEN else (0,)),
        torch.empty_like(weight) if gradients & WEIGHT else weight.new_empty((0,)),
        hidden.new_empty((0,)) if bias is None or not gradients & BIAS else bias.new_empty(bias.shape),
    )


def _check(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    smoothing: float,
    dtype: torch.dtype,
    gradients: int,
    row_weight: Tensor | None,
) -> None:
    """Refuses what the operation does not do; reads no data."""
    operands = f"hidden is {list(hidden.shape)}, weight {list(weight.shape)}, target {list(target.shape)}"
    if hidden.dim() != 2 or weight.dim() != 2 or target.dim() != 1:
        raise ValueError(f"hidden must be [rows, features], weight [classes, features], target [rows]; {operands}")
    if hidden.shape[1] != weight.shape[1] or hidden.shape[0] != target.shape[0] or weight.shape[0] == 0:
        raise ValueError(f"the sizes do not fit together, or there is no class; {operands}")
    for name, vector in (("bias", bias), ("class_weight", class_weight)):
        if vector is not None and (vector.dim() != 1 or vector.shape[0] != weight.shape[0]):
            raise ValueError(f"{name} must have an element for each class; it is {list(vector.shape)}, {operands}")
    if target.dtype != torch.int64:
        raise ValueError(f"target must hold int64, the numbers of classes; it holds {target.dtype}")
    if not hidden.is_floating_point() or not dtype.is_floating_point:
        raise ValueError(f"hidden and the logits must be floating-point, not {hidden.dtype} and {dtype}")
    if weight.dtype != hidden.dtype or (bias is not None and bias.dtype != hidden.dtype):
        raise ValueError(f"weight and bias must have hidden's dtype, {hidden.dtype}; weight has {weight.dtype}")
    if class_weight is not None and class_weight.dtype != dtype:
        raise ValueError(f"class_weight must have the logits' dtype, {dtype}; it has {class_weight.dtype}")
    if reduction not in (MEAN, SUM):
        raise ValueError(f"reduction must be 1 (mean) or 2 (sum), for a gradient of one number; it is {reduction}")
    if row_weight is not None and row_weight.shape != target.shape:
        raise ValueError(f"row_weight must have an element for each row; it is {list(row_weight.shape)}, {operands}")
    if row_weight is not None and (reduction != SUM or smoothing):
        raise ValueError(
            f"row_weight goes with reduction 2 (sum) and no smoothing; they are {reduction} and {smoothing}"
        )
    if not 0.0 <= smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1; it is {smoothing}")
    if not 0 <= gradients <= HIDDEN | WEIGHT | BIAS or (bias is None and gradients & BIAS):
        raise ValueError(f"gradients must be a sum of 1 (hidden), 2 (weight) and, with a bias, 4; it is {gradients}")


def _check_targets(target: Tensor, classes: int, ignored: int) -> None:
    """Refuses a target that is no class, as torch does; on an accelerator an assertion fails there, as torch's does."""
    if target.device.type != "cpu":
        target.new_zeros(()).expand(classes).gather(0, target.masked_fill(target == ignored, 0))
        return
    wrong = target[((target < 0) | (target >= classes)) & (target != ignored)]
    if len(wrong):
        raise IndexError(f"target {int(wrong[0])} is out of bounds for {classes} classes")


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor) -> None:
    """Fills in the logits of some rows."""
    if bias is None:
        torch.mm(hidden, weight.t(), out=logits)
    else:
        torch.addmm(bias, hidden, weight.t(), out=logits)


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    reduction: int,
    ignore_index: int,
    label_smoothing: float,
    logits_dtype: torch.dtype | None,
    gradients: int,
    row_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = logits_dtype or hidden.dtype
    _check(hidden, weight, bias, target, class_weight, reduction, label_smoothing, dtype, gradients, row_weight)
    count, classes = len(hidden), len(weight)
    _check_targets(target, classes, ignore_index)
    # a softmax of 16-bit logits is computed in float32, as torch does inside its own
    computed = torch.float64 if dtype == torch.float64 else torch.float32
    rows = _rows(target, class_weight, classes, reduction, ignore_index, label_smoothing, row_weight, computed)
    results = _results(hidden, weight, bias, dtype, gradients)
    loss, hidden_gradient, weight_gradient, bias_gradient = results
    if count == 0:
        weight_gradient.zero_()
    losses = torch.empty(count, dtype=computed, device=hidden.device)
    bias_sum = torch.zeros(bias_gradient.shape, dtype=computed, device=hidden.device)
    # Triton's version computes in float32 on logits that stay in 16 bits
    held = hidden.dtype if triton_version("linear_cross_entropy", hidden.device) else computed
    for chunk, logits, values in _chunks(hidden, classes, held):
        part = hidden[chunk]
        _linear(part, weight, bias, logits)
        if values is not logits:
            values.copy_(logits)
        these = rows._replace(targets=rows.targets[chunk], of_targets=rows.of_targets[chunk])
        _softmax_rows(values, these, losses[chunk])
        if values is not logits:
            logits.copy_(values)  # autograd of the upcast rounds the gradient here too
        if gradients & HIDDEN:
            torch.mm(logits, weight, out=hidden_gradient[chunk])
        if gradients & WEIGHT:
            first = chunk.start == 0  # passes over what the memory held, NaN too
            weight_gradient.addmm_(logits.t(), part, beta=0 if first else 1)
        if gradients & BIAS:
            bias_sum.add_(values.sum(0, dtype=computed))
    loss.copy_(losses.sum() / rows.divisor)
    bias_gradient.copy_(bias_sum)
    return results


def _chunks(hidden: Tensor, classes: int, computed: torch.dtype):
    """Slices of the rows, each with the chunk's logits in hidden's dtype and in that of the computation.

    The two are the same tensor where the dtypes are, and the same memory for every slice.
    """
    count, sizes = len(hidden), {hidden.dtype: hidden.dtype.itemsize, computed: computed.itemsize}
    step = chunk_rows(count, classes * sum(sizes.values()))
    logits = hidden.new_empty((step, classes))
    values = logits if computed == hidden.dtype else logits.new_empty((step, classes), dtype=computed)
    for start in range(0, count, step):
        size = min(step, count - start)
        part = logits[:size]
        yield slice(start, start + size), part, part if values is logits else values[:size]


def _shapes(
    hidden,
    weight,
    bias,
    target,
    class_weight,
    reduction,
    ignore_index,
    label_smoothing,
    logits_dtype,
    gradients,
    row_weight=None,
):
    dtype = logits_dtype or hidden.dtype
    _check(hidden, weight, bias, target, class_weight, reduction, label_smoothing, dtype, gradients, row_weight)
    return _results(hidden, weight, bias, dtype, gradients)


def _setup(ctx, inputs, output) -> None:
    gradients = inputs[9]
    for bit, place, name in ((HIDDEN, 0, "hidden"), (WEIGHT, 1, "weight"), (BIAS, 2, "bias")):
        if ctx.needs_input_grad[place] and not gradients & bit:
            raise ValueError(f"{name} requires a gradient, but gradients = {gradients} does not ask for it ({bit})")
    if ctx.needs_input_grad[10]:
        raise ValueError("row_weight requires a gradient, which is not computed; detach it")
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, incoming, *_):
    if torch.is_grad_enabled():  # the saved gradients know nothing of what they were computed from
        raise RuntimeError("linear_cross_entropy has no second derivative: do not call it with create_graph=True")
    needed = ctx.needs_input_grad
    found = [saved * incoming if needed[i] else None for i, saved in enumerate(ctx.saved_tensors)]
    return *found, *(None,) * 8


linear_cross_entropy = define(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? class_weight, "
    "int reduction, int ignore_index, float label_smoothing, ScalarType? logits_dtype, int gradients, "
    "Tensor? row_weight=None) "
    "-> (Tensor loss, Tensor hidden_gradient, Tensor weight_gradient, Tensor bias_gradient)",
    _run,
    _shapes,
    backward=_backward,
    setup=_setup,
)
"""The loss (a scalar in the logits' dtype) and its gradients, those for an incoming gradient of 1.

hidden [N, d] and weight [V, d] with any strides, bias [V], target int64 [N], class_weight [V] in the logits' dtype;
reduction 1 (mean) or 2 (sum). Logits are computed in hidden's dtype and then cast to logits_dtype. gradients: a sum of
1 (hidden's [N, d]), 2 (weight's, laid out like weight), 4 (bias's [V]); others have size [0]. row_weight [N]: by what
each row's loss is multiplied in the sum, where nothing is smoothed; it gets no gradient. In 16 bits the incoming
gradient comes after their rounding, so a loss that is scaled against underflow gains nothing here; and weight's
gradient is rounded once for each chunk that is added to it.
"""
