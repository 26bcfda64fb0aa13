"""`softmax_rows` of `cross_entropy_rows.py` in Triton: a program turns a row of logits into the loss's gradient.

The row is read three times, for its maximum, its sums and its gradient, and written once, in place. The second and
third reading find it in the cache. Sums are of single precision within a lane and of double precision over lanes. What
is computed once for a row has double precision too.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..backend.triton_launch import launch

_MOST_BLOCK = 4096  # classes at once, 8 to a thread


@triton.jit
def _exponential(x):
    """Return e^x for x <= 0; in float32 within 1 unit in the last place, and 0 below e^-87.33.

    It is Cephes' polynomial, since the processor's own exponential is less exact.
    """
    if x.dtype == tl.float64:
        result = tl.exp(x)
    else:
        held = tl.where(x < -87.33, -87.33, x)  # NaN stays
        whole = tl.floor(held * 1.44269504088896341 + 0.5)
        rest = held - whole * 0.693359375 - whole * -2.12194440e-4
        series = 1.9875691500e-4
        series = series * rest + 1.3981999507e-3
        series = series * rest + 8.3334519073e-3
        series = series * rest + 4.1665795894e-2
        series = series * rest + 1.6666665459e-1
        series = series * rest + 5.0000001201e-1
        series = series * rest * rest + rest + 1.0
        power = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        result = tl.where(x < -87.33, 0.0, series * power)
    return result


@triton.jit
def _maximum(x, CLASSES: tl.constexpr, NUMBER: tl.constexpr, BLOCK: tl.constexpr):
    """Return the largest logit of the row at x."""
    lane = tl.arange(0, BLOCK)
    most = tl.full([BLOCK], float("-inf"), NUMBER)
    for start in range(0, CLASSES, BLOCK):
        column = start + lane
        most = tl.maximum(most, tl.load(x + column, mask=column < CLASSES, other=float("-inf")).to(NUMBER))
    return tl.max(most, axis=0)


@triton.jit
def _sums(
    x,
    class_weight,
    most,
    CLASSES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    WEIGHTED: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Return the sums over the row at x of e^(logit - most) and of the weighted (logit - most): float64.

    The second is 0 without smoothing, which alone needs it.
    """
    lane = tl.arange(0, BLOCK)
    sums, spread = tl.zeros([BLOCK], NUMBER), tl.zeros([BLOCK], NUMBER)
    for start in range(0, CLASSES, BLOCK):
        column = start + lane
        inside = column < CLASSES
        below = tl.load(x + column, mask=inside, other=float("-inf")).to(NUMBER) - most
        sums += tl.where(inside, _exponential(below), 0.0)
        if SMOOTHING > 0:
            weighed = below
            if WEIGHTED:
                weighed = below * tl.load(class_weight + column, mask=inside, other=0)
            spread += tl.where(inside, weighed, 0.0)
    return tl.sum(sums.to(tl.float64), axis=0), tl.sum(spread.to(tl.float64), axis=0)


@triton.jit
def _write_gradient(
    x,
    class_weight,
    most,
    factor,
    share,
    sharp,
    target,
    counts,
    CLASSES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    WEIGHTED: tl.constexpr,
    NUMBER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Replace the row at x by e^(logit - most) * factor, less `share` of each class and `sharp` of the target."""
    lane = tl.arange(0, BLOCK)
    for start in range(0, CLASSES, BLOCK):
        column = start + lane
        inside = column < CLASSES
        value = _exponential(tl.load(x + column, mask=inside, other=0).to(NUMBER) - most) * factor
        if SMOOTHING > 0:
            of_class = share
            if WEIGHTED:
                of_class = share * tl.load(class_weight + column, mask=inside, other=0)
            value -= of_class
        value -= tl.where(column == target, sharp, 0.0)
        tl.store(x + column, tl.where(counts, value, 0.0).to(x.dtype.element_ty), mask=inside)


@triton.jit
def _softmax_rows(
    logits,
    targets,
    of_targets,
    class_weight,
    weight_sum,
    divisor,
    losses,
    ignored,
    CLASSES: tl.constexpr,
    SMOOTHING: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x = logits + row * CLASSES
    number: tl.constexpr = losses.dtype.element_ty
    target = tl.load(targets + row)
    counts = target != ignored
    # a target that is no class has been refused on the device by now; here it only must not be followed
    at_target = tl.load(x + target, mask=counts & (target >= 0) & (target < CLASSES), other=0).to(tl.float64)
    most = _maximum(x, CLASSES, number, BLOCK)
    total, spread = _sums(x, class_weight, most, CLASSES, SMOOTHING, WEIGHTED, number, BLOCK)

    inverse = 1.0 / tl.load(divisor).to(tl.float64)
    sharp = tl.load(of_targets + row).to(tl.float64) * (1 - SMOOTHING)
    logarithm = tl.log(total)
    loss = tl.zeros([], tl.float64)
    if SMOOTHING < 1:
        loss += sharp * (logarithm - (at_target - most.to(tl.float64)))
    factor, share = sharp, tl.zeros([], tl.float64)
    if SMOOTHING > 0:
        share += tl.full([], SMOOTHING, tl.float64) / CLASSES
        of_all = tl.load(weight_sum).to(tl.float64)
        loss += share * (of_all * logarithm - spread)
        factor += share * of_all
    tl.store(losses + row, tl.where(counts, loss, 0.0).to(number))

    factor, share = (factor * inverse / total).to(number), (share * inverse).to(number)
    sharp = (sharp * inverse).to(number)
    _write_gradient(
        x, class_weight, most, factor, share, sharp, target, counts, CLASSES, SMOOTHING, WEIGHTED, number, BLOCK
    )


def softmax_rows(
    logits: Tensor,
    targets: Tensor,
    of_targets: Tensor,
    class_weight: Tensor | None,
    weight_sum: Tensor,
    divisor: Tensor,
    smoothing: float,
    ignored: int,
    losses: Tensor,
) -> None:
    """Turn logits [n, V] into the loss's gradient in place, and fill in losses [n].

    The computation is in losses' dtype, float64 for logits in float64 and otherwise float32. The other arguments are
    those of a chunk's `Rows`, in that dtype too except for targets, int64.
    """
    count, classes = logits.shape
    block = min(_MOST_BLOCK, triton.next_power_of_2(classes))
    launch(
        _softmax_rows,
        count,
        logits.device,
        *(logits, targets, of_targets, weight_sum if class_weight is None else class_weight, weight_sum, divisor),
        *(losses, ignored),
        CLASSES=classes,
        SMOOTHING=smoothing,
        WEIGHTED=class_weight is not None,
        BLOCK=block,
        num_warps=min(16, max(4, block // 256)),
    )
