"""Estimates a call's time and memory from shapes and a device preset; nothing runs, nothing is allocated."""

from __future__ import annotations

import math

import torch
from torch import fx

from ..capture.operands.operands import extent_bytes, fake_operands, tensor_operands, tensors_in, value_of
from .device_presets import DevicePreset

aten = torch.ops.aten

# Operations that read as many elements as they return (or as there are rows), not all of their largest operand.
_PICKING = {
    aten.embedding,
    aten.gather,
    aten.index,
    aten.index_select,
    aten.nll_loss_forward,
    aten.nll_loss2d_forward,
}
_FLASH_BACKWARD = {aten._scaled_dot_product_flash_attention_backward, aten._flash_attention_backward}
_PLACE_BYTES = 8
_ALIASING = {aten._unsafe_view, aten.lift_fresh, aten._reshape_alias}


def roofline_seconds(node: fx.Node, flops: int, preset: DevicePreset) -> float:
    """Return the larger of arithmetic at the device's peak and traffic at its bandwidth, plus the launch.

    A view costs nothing. Source: the roofline model of Williams, Waterman and Patterson (2009).
    """
    if is_view(node):
        return 0.0
    traffic_seconds = moved_bytes(node) / preset.memory_bytes_per_second
    if flops == 0:
        return traffic_seconds + preset.launch_seconds
    rate = preset.rate(_arithmetic_dtype(node), tensor_float_32=_uses_tensor_float_32(node))
    return max(flops / rate, traffic_seconds) + preset.launch_seconds


def moved_bytes(node: fx.Node) -> int:
    """Return the bytes read from and written to memory: every operand once, every output once."""
    written = sum(extent_bytes(tensor) for tensor in tensors_in(value_of(node)))
    read = [extent_bytes(tensor) for tensor in tensor_operands(node)]
    if getattr(node.target, "overloadpacket", None) in _PICKING:
        largest = max(read, default=0)
        read[read.index(largest)] = min(largest, max(written, sum(read) - largest))
    return sum(read) + written


def output_bytes(node: fx.Node) -> int:
    """Return the bytes that the call's outputs allocate; 0 for a view and for outputs written in place."""
    return sum(_new_output_bytes(node))


def estimated_working_bytes(node: fx.Node) -> int:
    """Return the call's bytes at its fullest moment, as far as they are known without running it.

    These are the outputs, and the accumulators of FlashAttention-2's backward.
    """
    scratch_bytes = 0
    if getattr(node.target, "overloadpacket", None) in _FLASH_BACKWARD:
        scratch_bytes = _flash_backward_scratch(node)
    return output_bytes(node) + scratch_bytes


def bounding_working_bytes(node: fx.Node) -> int:
    """Return more bytes than a call has been seen to allocate, for kernels that should have been run and could not.

    The bound has the outputs twice, each operand once as it is broadcast, and an index for each element of masks.
    """
    scratch_bytes = 0
    for tensor in tensor_operands(node):
        scratch_bytes += tensor.numel() * tensor.element_size()
        if tensor.dtype in (torch.bool, torch.uint8):
            scratch_bytes += tensor.numel() * _PLACE_BYTES * max(tensor.dim(), 1)
    return 2 * estimated_working_bytes(node) + (0 if is_view(node) else scratch_bytes)


def is_view(node: fx.Node) -> bool:
    """Return whether the call only returns a view of an operand, by its schema or as one of the few that hide it."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return target.is_view or target.overloadpacket in _ALIASING


def _new_output_bytes(node: fx.Node) -> list[int]:
    if is_view(node):
        return []
    value = value_of(node)
    values = value if isinstance(value, (list, tuple)) else [value]
    returns = node.target._schema.returns if isinstance(node.target, torch._ops.OpOverload) else []
    aliased = [entry.alias_info is not None for entry in returns]
    if len(aliased) != len(values):
        aliased = [any(aliased)] * len(values)
    fresh = [item for item, is_alias in zip(values, aliased, strict=True) if not is_alias]
    return [extent_bytes(tensor) for tensor in tensors_in(fresh)]


def _flash_backward_scratch(node: fx.Node) -> int:
    """Return the bytes of FlashAttention-2's own buffers (arXiv 2307.08691, `mha_bwd` in flash_api.cpp).

    The queries' gradients are added up in fp32, along with the sums of the rows. With fewer heads of keys than of
    queries, the keys' and values' gradients are first made for each query head.
    """
    query, key = fake_operands(node)[0][1:3]
    batch, heads, queries, width = query.shape
    padded_queries, padded_width = _up(queries, 128), _up(width, 32) if width <= 192 else 256
    scratch_bytes = batch * heads * padded_queries * (padded_width + 1) * 4
    if key.shape[1] != heads:
        scratch_bytes += 2 * math.prod(key.shape) * key.element_size() * heads // key.shape[1]
    return scratch_bytes


def _up(number: int, multiple: int) -> int:
    return -(-int(number) // multiple) * multiple


def _arithmetic_dtype(node: fx.Node) -> torch.dtype:
    """Return the dtype of the largest floating operand, in which the product is computed."""
    floating = [tensor for tensor in tensor_operands(node) if tensor.dtype.is_floating_point]
    return max(floating, key=lambda tensor: tensor.numel()).dtype if floating else torch.float32


def _uses_tensor_float_32(node: fx.Node) -> bool:
    if "convolution" in str(node.target):
        return torch.backends.cudnn.allow_tf32
    return torch.get_float32_matmul_precision() != "highest"
