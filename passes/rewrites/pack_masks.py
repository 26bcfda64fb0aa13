"""Keeps the masks of dropout in one bit for each element."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ...kernels.dropout_masks import draw_bits, draws_alike
from ...kernels.packing.bits import bytes_of_bits, dense, multiply_bits, pack_bits
from ..graph_pass import GraphPass, rewrite_calls

aten = torch.ops.aten
_MULTIPLIED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PackMasks(GraphPass):
    """Draws a mask straight into bits, and multiplies by the bits in forward and in backward.

    before: noise = aten.bernoulli.p(empty, 0.9); mask = aten.div.Scalar(noise, 0.9); y = aten.mul.Tensor(x, mask)
    after:  bits = lowtide.draw_bits([64, 256], 0.9, device);
            y = lowtide.multiply_bits(x, bits, 1.1111112, [256, 1])

    The bits are those that eager draws, and products with them are those with the mask. It applies only where all
    operands lie in memory like the mask. Fused dropout, which a GPU runs, draws as before, and its mask is packed then:

    before: y, mask = aten.native_dropout.default(x, 0.1, True);
            gradient = aten.native_dropout_backward.default(g, mask, 1.1111112)
    after:  bits = lowtide.pack_bits.default(mask, [256, 1]);
            gradient = lowtide.multiply_bits.default(g, bits, 1.1111112, [256, 1])
    """

    name: ClassVar[str] = "packed_masks"
    fidelity: ClassVar[str] = "bitwise"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        return rewrite_calls(graph, {aten.bernoulli.p: _pack, aten.native_dropout.default: _pack_drawn})


def _pack(noise: fx.Node) -> None:
    """Pack one mask, if all its readers are products."""
    probability = noise.args[1]
    masks = [user for user in noise.users if user.target is aten.div.Scalar and user.args[1] == probability]
    if len(masks) != 1 or len(noise.users) != 1 or not isinstance(probability, float) or probability == 0.0:
        return
    mask = masks[0]
    products = {user: _multiplied(user, mask) for user in mask.users}
    if not products or any(other is None for other in products.values()):
        return
    value: torch.Tensor = mask.meta["val"]
    if value.device.type == "cuda" or (value.dtype == torch.float64 and not draws_alike()):
        return  # there torch draws other numbers, into elements of another type
    graph = noise.graph
    with graph.inserting_before(noise):
        bits = graph.call_function(draw_bits, (list(value.shape), probability, value.device))
    bits.meta = {name: entry for name, entry in noise.meta.items() if name != "in_place"}
    bits.meta["val"] = value.new_empty((bytes_of_bits(value.numel()),), dtype=torch.uint8)
    scale = float(torch.ones((), dtype=value.dtype).div_(probability))
    for product, other in products.items():
        product.target, product.args, product.kwargs = multiply_bits, (other, bits, scale, list(value.stride())), {}
    blank = noise.args[0]
    for dead in (mask, noise, blank):
        if isinstance(dead, fx.Node) and dead.op == "call_function" and not dead.users:
            graph.erase_node(dead)


def _pack_drawn(dropout: fx.Node) -> None:
    """Pack the mask of a fused dropout, if all its readers are its backward."""
    masks = [user for user in dropout.users if user.target is operator.getitem and user.args[1] == 1]
    if len(masks) != 1 or not all(_is_backward(user, masks[0]) for user in masks[0].users):
        return
    mask, backwards = masks[0], list(masks[0].users)
    if not backwards:
        return
    like = list(mask.meta["val"].stride())
    graph = dropout.graph
    with graph.inserting_after(mask):
        bits = graph.call_function(pack_bits, (mask, like))
    bits.meta = {name: entry for name, entry in mask.meta.items() if name != "in_place"}
    bits.meta["val"] = pack_bits(mask.meta["val"], like)
    for backward in backwards:
        gradient, _, scale = backward.args
        backward.target, backward.args, backward.kwargs = multiply_bits, (gradient, bits, scale, like), {}


def _is_backward(user: fx.Node, mask: fx.Node) -> bool:
    if user.target is not aten.native_dropout_backward.default or user.args[1] is not mask:
        return False
    gradient = user.args[0]
    assert isinstance(gradient, fx.Node)
    return _lies_alike(gradient, mask) and _lies_alike(user, mask) and isinstance(user.args[2], float)


def _lies_alike(node: fx.Node, mask: fx.Node) -> bool:
    value, like = node.meta["val"], mask.meta["val"]
    alike = (value.shape, value.stride()) == (like.shape, like.stride())
    return alike and dense(like) and value.dtype in _MULTIPLIED


def _multiplied(user: fx.Node, mask: fx.Node) -> fx.Node | None:
    """Return the operand that a product multiplies by the mask; None if it is another reader, or laid out
    differently.
    """
    if user.target is not aten.mul.Tensor:
        return None
    others = [argument for argument in user.args if argument is not mask]
    if len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    left, right, result = others[0].meta["val"], mask.meta["val"], user.meta["val"]
    alike = all(
        (value.shape, value.stride(), value.dtype) == (right.shape, right.stride(), right.dtype)
        for value in (left, result)
    )
    return others[0] if alike and dense(right) and right.dtype in _MULTIPLIED else None
