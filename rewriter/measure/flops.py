"""Counts the floating-point operations of a captured call from the shapes of its operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import flop_registry

from ...kernels.loss.linear_cross_entropy import HIDDEN, WEIGHT, linear_cross_entropy
from ...kernels.rows.sketches import DENSE, sketch, unsketch
from ...passes.rewrites.changes import functional_packet
from ..capture.operands.operands import fake_operands, value_of

aten = torch.ops.aten


def count_flops(node: fx.Node) -> int:
    """Return the multiplications and additions of matrix products, convolutions and attention; 0 for any other call.

    The formulas are those of `torch.utils.flop_counter`. Where it lacks a kernel, the formula of the nearest kernel is
    used. Attention counts 2 products of queries × keys forward and 5 backward, causal or not.
    """
    packet = functional_packet(node.target)
    formula = flop_registry.get(packet)
    positional, named = fake_operands(node)
    if formula is not None:
        return int(formula(*positional, **named, out_val=value_of(node)))
    own = _FORMULAS.get(packet)
    return 0 if own is None else int(own(*positional, value_of(node)))


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> int:
    return 2 * _pairs(query, key) * (query.shape[-1] + value.shape[-1])


def _attention_backward(
    grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> int:
    return 2 * _pairs(query, key) * (3 * query.shape[-1] + 2 * grad_out.shape[-1])


def _pairs(query: torch.Tensor, key: torch.Tensor) -> int:
    """Return batch × heads × queries × keys, the number of scores that attention computes."""
    return math.prod(query.shape[:-1]) * key.shape[-2]


def _product(left: torch.Tensor, right: torch.Tensor, *_: Any) -> int:
    """Count a product over the last dimension of `left`: matrix × vector, or two vectors."""
    return 2 * left.numel() if right.dim() < 2 else 2 * left.numel() * right.shape[-1]


def _linear(tensor: torch.Tensor, weight: torch.Tensor, *_: Any) -> int:
    return 2 * tensor.numel() * (weight.shape[0] if weight.dim() == 2 else 1)


def _linear_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, *others: Any) -> int:
    """Count a product for the logits, and one for each of the gradients of hidden states and weight."""
    gradients = others[7] & (HIDDEN | WEIGHT)  # the tenth argument
    return 2 * hidden.numel() * weight.shape[0] * (1 + gradients.bit_count())


def _sketch(x: torch.Tensor, kind: str, kept_rows: int, *_: Any) -> int:
    return 2 * x.numel() * kept_rows if kind in DENSE else 0


def _unsketch(code: torch.Tensor, kind: str, *others: Any) -> int:
    return _sketch(others[-1], kind, len(code))


# Each formula gets the positional arguments, then the result.
_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten._scaled_dot_product_fused_attention_overrideable: _attention,
    aten._scaled_dot_product_fused_attention_overrideable_backward: _attention_backward,
    aten.mv: _product,
    aten.dot: _product,
    aten.vdot: _product,
    aten.addmv: lambda addend, matrix, vector, *_: _product(matrix, vector),
    aten.addbmm: lambda addend, left, right, *_: _product(left, right),
    aten.linear: _linear,
    linear_cross_entropy.overloadpacket: _linear_cross_entropy,
    sketch.overloadpacket: _sketch,
    unsketch.overloadpacket: _unsketch,
}
