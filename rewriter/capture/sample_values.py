"""Computes what a module looks at while it is captured, from the sample's real tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...passes.calls import inputs_of, is_random
from ...passes.foreign_calls import calling
from ...passes.sources import Source
from ...passes.step_graph import updated_buffers
from ..errors import CaptureError
from .watch.random_streams import unwatched

aten = torch.ops.aten

_SMALL_ELEMENTS = 4096  # results as small as this are kept, since later decisions may need them


class SampleValues:
    """Real values of recorded calls. sample: real data of placeholders; where: says which module and line are
    running."""

    def __init__(self, where: Callable[[], str]) -> None:
        self.where = where
        self.sample: dict[fx.Node, torch.Tensor] = {}
        self._small: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node, draws: float | None = None) -> Any:
        """The real value of a node.

        draws: replaces all random numbers. Otherwise they are those that the step will draw, from the default
        generator as it stands; it stays as it is.
        """
        random = [n for n in inputs_of(node) if n.op == "call_function" and is_random(n)]
        if draws is not None or not random:
            return self._evaluated(node, self._needed([node], draws), draws)
        # All that is drawn before counts, since it moves the generator.
        needed = self._needed([node, *_drawn_before(node)], draws)
        devices = {n.meta["val"].device for n in random if n.meta["val"].device.type == "cuda"}
        with unwatched(), torch.random.fork_rng(devices=list(devices), device_type="cuda"):
            return self._evaluated(node, needed, draws)

    def _known(self, node: fx.Node, draws: float | None) -> bool:
        return draws is None and node in self._small and not (node.op == "call_function" and is_random(node))

    def _needed(self, wanted: list[fx.Node], draws: float | None) -> set[fx.Node]:
        """What has to be there to compute some nodes: nothing behind a result that is known."""
        seen, stack = set(wanted), list(wanted)
        while stack:
            node = stack.pop()
            for before in () if self._known(node, draws) else node.all_input_nodes:
                if before not in seen:
                    seen.add(before)
                    stack.append(before)
        return seen

    def _evaluated(self, wanted: fx.Node, needed: set[fx.Node], draws: float | None) -> Any:
        """Runs what is needed in order, and lets go of each value once nothing needs it any more."""
        reads = Counter(before for n in needed if not self._known(n, draws) for before in n.all_input_nodes)
        values: dict[fx.Node, Any] = {}
        for node in wanted.graph.nodes:
            if node not in needed:
                continue
            known = self._known(node, draws)
            values[node] = self._small[node] if known else self._run(node, values, draws)
            if draws is None and not known and _is_small(values[node]):
                self._small[node] = values[node]
            for before in () if known else node.all_input_nodes:
                reads[before] -= 1
                if not reads[before]:
                    values.pop(before, None)
            if node is wanted:
                break
        return values[wanted]

    def _run(self, node: fx.Node, values: dict[fx.Node, Any], draws: float | None) -> Any:
        if node.op == "placeholder":
            return self._sample_of(node)
        if draws is not None and is_random(node):
            return torch.full(node.meta["val"].shape, draws, dtype=node.meta["val"].dtype)
        args: Any
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])  # pyright: ignore
        if node.meta.get("in_place"):
            return args[0].bernoulli_(args[1])  # drawn in the order of memory, as the step will
        updated = {id(values[n]) for n in updated_buffers(node)}
        if updated:
            args = tuple(a.clone() if id(a) in updated else a for a in args)  # pyright: ignore  # the step updates them
        return calling(node)(*args, **kwargs)

    def _sample_of(self, node: fx.Node) -> torch.Tensor:
        source: Source = node.meta["source"]
        if node not in self.sample:
            raise CaptureError(
                f"the module looks at the values of {source.kind} {source.name}, {self.where()}, which has none on "
                "the meta device; pass it as a real tensor"
            )
        return self.sample[node].detach()

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


def _drawn_before(node: fx.Node) -> list[fx.Node]:
    """The random calls up to a node, in order."""
    drawn = []
    for one in node.graph.nodes:
        if one.op == "call_function" and is_random(one):
            drawn.append(one)
        if one is node:
            break
    return drawn


def _is_small(value: Any) -> bool:
    return not isinstance(value, (list, tuple)) and (
        not isinstance(value, torch.Tensor) or value.numel() <= _SMALL_ELEMENTS
    )
