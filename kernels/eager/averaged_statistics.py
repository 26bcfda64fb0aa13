"""Batch normalization whose running statistics are the averages over all batches so far.

Torch's kernels take the weight of the present batch as a number, 1 / the number of batches. These take a tensor that
counts the batches and read it in each run, so that one program works for all steps. Like torch's own kernels they write
their running statistics although their schema does not say so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend.library import define

aten = torch.ops.aten

_KERNELS = {
    "native_batch_norm": (aten.native_batch_norm.default, 3),
    "cudnn_batch_norm": (aten.cudnn_batch_norm.default, 4),
    "miopen_batch_norm": (aten.miopen_batch_norm.default, 3),
}


def _averaged(name: str, kernel: Any, results: int) -> Any:
    """Return the operation that takes a count in the place of the number that `kernel` takes."""

    def run(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
        training: bool,
        count: Tensor,
        eps: float,
    ) -> tuple[Tensor, ...]:
        # Without statistics to write the number is not used. A count of 0 only occurs where kernels are measured.
        batches = count.item() if training and mean is not None else 1
        return kernel(x, weight, bias, mean, variance, training, 1.0 / float(batches or 1), eps)

    def shapes(*args: Any) -> tuple[Tensor, ...]:
        return kernel(*args[:6], 1.0, args[7])

    arguments = (
        "Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance, bool training, Tensor count, float eps"
    )
    return define(f"{name}_averaged({arguments}) -> ({', '.join(['Tensor'] * results)})", run, shapes)


AVERAGED = {kernel: _averaged(name, kernel, results) for name, (kernel, results) in _KERNELS.items()}
"""For each of torch's kernels, the operation that takes a counting tensor as its seventh argument."""
