"""Keeps of a max pooling the place of each window's maximum, in the fewest bits a window needs."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ...kernels.pooling.pooling import max_pool2d_backward_from_codes, max_pool2d_codes
from ..graph_pass import GraphPass, rewrite_calls

aten = torch.ops.aten


@dataclass(frozen=True)
class PackIndices(GraphPass):
    """Keeps 2 bits for each window of 2 × 2, 4 for one of 3 × 3, and not the pooled input.

    before: y, indices = aten.max_pool2d_with_indices.default(x, [2, 2], [2, 2]);
            gradient = aten.max_pool2d_with_indices_backward.default(g, x, [2, 2], [2, 2], ..., indices)
    after:  y, codes = lowtide.max_pool2d_codes.default(x, [2, 2], [2, 2], [0, 0], [1, 1], False, False);
            gradient = lowtide.max_pool2d_backward_from_codes.default(g, codes, [8, 16, 32, 32], [2, 2], ..., False)
    """

    name: ClassVar[str] = "packed_indices"
    fidelity: ClassVar[str] = "bitwise"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        return rewrite_calls(graph, {aten.max_pool2d_with_indices.default: _pack})


def _pack(pool: fx.Node) -> None:
    parts = {user.args[1]: user for user in pool.users if user.target is operator.getitem}
    if set(parts) != {0, 1}:
        return
    y, indices = parts[0], parts[1]
    backwards = list(indices.users)
    if not all(user.target is aten.max_pool2d_with_indices_backward.default for user in backwards):
        return
    x, window = _window(pool)
    before = x.meta["val"]
    channels_last = not y.meta["val"].is_contiguous()
    value = max_pool2d_codes(before, *window, channels_last)
    made = {
        user: max_pool2d_backward_from_codes(
            user.all_input_nodes[0].meta["val"], value[1], list(before.shape), *window, channels_last
        )
        for user in backwards
    }
    if value[0].stride() != y.meta["val"].stride():
        return
    if any(user.meta["val"].stride() != result.stride() for user, result in made.items()):
        return
    pool.target, pool.args, pool.kwargs = max_pool2d_codes, (x, *window, channels_last), {}
    pool.meta["val"], y.meta["val"], indices.meta["val"] = value, value[0], value[1]
    for user in backwards:
        user.target = max_pool2d_backward_from_codes
        user.args = (user.args[0], indices, list(before.shape), *window, channels_last)


def _window(pool: fx.Node) -> tuple[fx.Node, tuple[Any, ...]]:
    """Return the pooled input, and kernel, stride, padding, dilation and ceil mode."""
    x, kernel, *others = pool.args
    arguments = [kernel, [], [0, 0], [1, 1], False]
    arguments[1 : 1 + len(others)] = others
    for place, name in enumerate(("kernel_size", "stride", "padding", "dilation", "ceil_mode")):
        arguments[place] = pool.kwargs.get(name, arguments[place])
    assert isinstance(x, fx.Node)
    window = [list(part) * (2 if len(part) == 1 else 1) for part in arguments[:4]]  # pyright: ignore
    return x, (*window, arguments[4])
