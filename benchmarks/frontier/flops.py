"""Counts the operations of a step as it runs, by torch's own counter with a formula for the CPU's attention.

`FlopCounterMode` counts matrix products, convolutions and most attention kernels, but not the CPU's. Here that counts
4·B·H·T·S·D forward and 2.5 times that backward, causal or not, like torch's other attention kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import flop_counter

from benchmarks.frontier.compile import compiled_steps_counted

aten = torch.ops.aten


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])


def _attention_backward(
    grad_out: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    return 5 * _attention(query, key, value) // 2


_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_flops(step: Callable[[], object]) -> dict[str, int]:
    """Count the operations of one step by kernel."""
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with compiled_steps_counted(), counter:
        step()
    return {str(kernel): count for kernel, count in counter.get_flop_counts().get("Global", {}).items()}


def matmul_flops(flops: dict[str, int]) -> int:
    """Sum those of products and convolutions alone: what the counter counts without the formula for attention."""
    own = {str(kernel) for kernel in _FORMULAS}
    return sum(count for kernel, count in flops.items() if kernel not in own)
