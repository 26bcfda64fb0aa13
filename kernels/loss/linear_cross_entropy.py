"""A linear layer and the cross-entropy of its result, some rows at a time: the logits never exist as a whole.

hidden [N, d] and weight [V, d] (and bias [V]) make logits [N, V]. Only a chunk of rows of them exists at once, and the
gradients are computed in it before the next. So no product is computed twice, and backward only multiplies forward's
gradients by the incoming gradient.

Kept: the gradients themselves, N d + V d + V elements, where eager keeps log-probabilities of N V elements (and makes
their equally large gradient). At work: one chunk, about 4 MiB, and vectors of N or V elements.

The formulas are in `cross_entropy_rows.py`. Computing gradients in forward, a chunk at a time: Hsu et al., "Liger
Kernel" (arXiv:2410.10989).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ..backend.library import define
from .cross_entropy_rows import rows_of, softmax_rows, takes_16_bits

HIDDEN, WEIGHT, BIAS = 1, 2, 4  # bits of `gradients`
MEAN, SUM = 1, 2  # values of `reduction`, as ATen numbers them

# A step's time on one thread relative to plain torch's, with N = 2048, d = 384, V = 8000: 1.15, 0.97, 0.85, 0.80 and
# 0.78 at 1, 2, 4, 8 and 16 MiB. Where other programs hold the cores, every product waits for its threads, and 4 MiB
# took 1.4.
_CHUNK_BYTES = 4 << 20
# Fewer rows leave the products waiting for weight: 1.31, 1.07, 0.97 and 0.88 at 16, 32, 64 and 128 rows, with N = 512,
# d = 384, V = 50257.
_LEAST_ROWS = 64


def chunk_rows(count: int, bytes_per_row: int) -> int:
    """Return the rows of a chunk: all chunks alike, about 4 MiB, but never under 64 rows."""
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
    """Return the loss of `linear_cross_entropy` as torch computes it, all logits at once; its gradients are
    autograd's.
    """
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


def _results(hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, gradients: int):
    """Return tensors for the loss and the gradients, not filled in; a gradient that is not requested has no elements.

    Weight's is laid out like weight, so that a transposed view's gradient is that of a contiguous tensor.
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
    """Refuse arguments that the operation does not support; reads no data."""
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
    """Refuse a target that is not a class, as torch does; on an accelerator an assertion fails there, as torch's
    does.
    """
    if target.device.type != "cpu":
        target.new_zeros(()).expand(classes).gather(0, target.masked_fill(target == ignored, 0))
        return
    wrong = target[((target < 0) | (target >= classes)) & (target != ignored)]
    if len(wrong):
        raise IndexError(f"target {int(wrong[0])} is out of bounds for {classes} classes")


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, logits: Tensor) -> None:
    """Fill in the logits of some rows."""
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
    rows = rows_of(
        target,
        class_weight,
        classes,
        mean=reduction == MEAN,
        ignored=ignore_index,
        smoothing=label_smoothing,
        row_weight=row_weight,
        dtype=computed,
    )
    results = _results(hidden, weight, bias, dtype, gradients)
    loss, hidden_gradient, weight_gradient, bias_gradient = results
    if count == 0:
        weight_gradient.zero_()
    losses = torch.empty(count, dtype=computed, device=hidden.device)
    bias_sum = torch.zeros(bias_gradient.shape, dtype=computed, device=hidden.device)
    values_dtype = hidden.dtype if takes_16_bits(hidden.device) else computed
    for chunk, logits, values in _chunks(hidden, classes, values_dtype):
        part = hidden[chunk]
        _linear(part, weight, bias, logits)
        if values is not logits:
            values.copy_(logits)
        part_rows = rows._replace(targets=rows.targets[chunk], of_targets=rows.of_targets[chunk])
        softmax_rows(values, part_rows, losses[chunk])
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
    """Yield slices of the rows, each with the chunk's logits in hidden's dtype and in that of the computation.

    The two are the same tensor where the dtypes are equal, and the same memory for every slice.
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
    gradients = [saved * incoming if needed[i] else None for i, saved in enumerate(ctx.saved_tensors)]
    return *gradients, *(None,) * 8


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

hidden, weight, bias: [N, d] and [V, d] with any strides, [V].
target: int64 [N].
class_weight: [V] in the logits' dtype.
reduction: 1 (mean) or 2 (sum).
logits_dtype: logits are computed in hidden's dtype and then cast to it.
gradients: a sum of 1 (hidden's [N, d]), 2 (weight's, laid out like weight), 4 (bias's [V]); others have size [0].
row_weight: factors [N] of each row's loss in the sum, where nothing is smoothed; it gets no gradient.

In 16 bits the incoming gradient is applied after rounding, so scaling a loss against underflow gains nothing here.
Weight's gradient is rounded once for each chunk that is added to it.
"""
