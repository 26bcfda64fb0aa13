"""Computes what a module looks at while it is captured, from the sample's real inputs and buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..passes.foreign_calls import calling
from .calls import inputs_of, is_random
from .errors import CaptureError
from .sources import Source

aten = torch.ops.aten


class SampleValues:
    """Real values of recorded calls. sample: real data of placeholders; where: says which module and line are
    running."""

    def __init__(self, where: Callable[[], str]) -> None:
        self.where = where
        self.sample: dict[fx.Node, torch.Tensor] = {}
        self.real: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node, draws: float | None = None) -> Any:
        """The real value of a node, from the sample's inputs, buffers and constants; `draws` replaces random
        numbers."""
        if draws is None and node in self.real:
            return self.real[node]
        if node.op == "placeholder":
            return self._sample_of(node)
        if is_random(node):
            if draws is None:
                raise CaptureError(
                    f"the module decides by a random number ({node.target}), {self.where()}: each step would be "
                    "another program; switch it off (layerdrop=0, for one) or keep that part out of the "
                    "rewritten module"
                )
            value = torch.full(node.meta["val"].shape, draws, dtype=node.meta["val"].dtype)
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: self.of(n, draws))
            value = calling(node)(*args, **kwargs)
        if draws is None:
            self.real[node] = value
        return value

    def _sample_of(self, node: fx.Node) -> torch.Tensor:
        source: Source = node.meta["source"]
        if source.kind == "parameter":
            raise CaptureError(
                f"the module looks at the values of a parameter ({source.name}), {self.where()}: what it does may "
                "change with every step, so it has no fixed program; keep that part out of the rewritten module"
            )
        if node not in self.sample:
            raise CaptureError(
                f"the module looks at the values of {source.kind} {source.name}, {self.where()}, which has none on "
                "the meta device; pass it as a real tensor"
            )
        return self.sample[node]

    def same_for_any_draw(self, node: fx.Node) -> Any:
        """The outcome of a comparison with uniform random numbers when it is the same over their whole range
        (a layerdrop of 0), else None: such a decision needs no guard."""
        seen = inputs_of(node)
        drawn = [n for n in seen if n.op == "call_function" and is_random(n)]
        uniform = (aten.rand.default, aten.rand_like.default)
        comparisons = (
            aten.lt.Scalar,
            aten.le.Scalar,
            aten.gt.Scalar,
            aten.ge.Scalar,
            aten._local_scalar_dense.default,
        )
        if not drawn or any(n.target not in uniform + comparisons for n in seen if n.op == "call_function"):
            return None
        below_one = 1.0 - 2.0**-24
        lowest, highest = self.of(node, 0.0), self.of(node, below_one)
        return lowest if lowest == highest else None
