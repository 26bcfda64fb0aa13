"""`norms.py` in Triton: a program takes a few whole rows, and adds up what weight and bias get from them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .backend.triton_launch import launch

MOST_COLUMNS = 16384  # a row has to fit into the registers of a program
_ROWS = 32  # whose contributions to weight and bias are added in the type of the computation


@triton.jit
def _backward(
    gradient,
    normalized,
    reciprocal_deviation,
    weight,
    shift,
    inverse,
    result,
    sums,
    rows,
    columns,
    CENTRED: tl.constexpr,
    WRITES: tl.constexpr,
    SUMS: tl.constexpr,
    COMPUTED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    of_weight = tl.load(weight + column, mask=inside, other=0).to(COMPUTED)
    of_shift = tl.load(shift + column, mask=inside, other=0).to(COMPUTED)
    of_inverse = tl.load(inverse + column, mask=inside, other=0).to(COMPUTED)
    by_weight, by_bias = tl.zeros([BLOCK], COMPUTED), tl.zeros([BLOCK], COMPUTED)
    for i in range(ROWS):
        row = program * ROWS + i
        here = inside & (row < rows)
        g = tl.load(gradient + row * columns + column, mask=here, other=0).to(COMPUTED)
        y = tl.load(normalized + row * columns + column, mask=here, other=0).to(COMPUTED)
        x = tl.where(here, (y - of_shift) * of_inverse, 0.0)
        by_weight += g * x
        by_bias += g
        if WRITES:
            weighed = g * of_weight
            along = tl.sum(weighed * x, axis=0) / columns
            change = weighed - x * along
            if CENTRED:
                change -= tl.sum(weighed, axis=0) / columns
            change *= tl.load(reciprocal_deviation + row, mask=row < rows, other=0).to(COMPUTED)
            tl.store(result + row * columns + column, change.to(result.dtype.element_ty), mask=here)
    if SUMS:
        own = sums + program * 2 * columns
        tl.store(own + column, by_weight, mask=inside)
        tl.store(own + columns + column, by_bias, mask=inside)


def backward(
    gradient: Tensor,
    normalized: Tensor,
    reciprocal_deviation: Tensor,
    affine: tuple[Tensor, Tensor, Tensor],
    result: Tensor | None,
    centred: bool,
    summed: bool,
) -> Tensor | None:
    """`backward_plainly` for rows of at most MOST_COLUMNS; returns the sums, float64 [2, columns], if asked for."""
    rows, columns = gradient.shape
    programs = -(-rows // _ROWS)
    wide = torch.promote_types(gradient.dtype, torch.float32)
    sums = gradient.new_empty((programs if summed else 0, 2, columns), dtype=wide)
    block = triton.next_power_of_2(max(1, columns))
    launch(
        _backward,
        programs if columns else 0,
        gradient.device,
        *(gradient, normalized, reciprocal_deviation, *affine, gradient if result is None else result, sums),
        *(rows, columns),
        CENTRED=centred,
        WRITES=result is not None,
        SUMS=summed,
        COMPUTED=tl.float64 if wide == torch.float64 else tl.float32,
        ROWS=_ROWS,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
    )
    return sums.sum(0, dtype=torch.float64) if summed else None
