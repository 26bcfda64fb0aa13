"""Compute the values that a module reads during capture, from the sample's real tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ...passes.calls import inputs_of, is_random
from ...passes.foreign_calls import with_autocast
from ...passes.sources import Source
from ...passes.step_graph import updated_buffers
from ..errors import CaptureError
from .watch.random_streams import unwatched

aten = torch.ops.aten

_SMALL_ELEMENTS = 4096  # results of at most so many elements are kept, since later decisions may need them


class SampleValues:
    """Real values of recorded calls.

    sample: real data of placeholders.
    where: describes the module and line that are running.
    """

    def __init__(self, where: Callable[[], str]) -> None:
        self.where = where
        self.sample: dict[fx.Node, torch.Tensor] = {}
        self._small: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node, draws: float | None = None) -> Any:
        """Return the real value of a node.

        draws: a number that replaces all random numbers; by default they are those that the step will draw from the
            default generator, whose state does not change.
        """
        random = [n for n in inputs_of(node) if n.op == "call_function" and is_random(n)]
        if draws is not None or not random:
            return self._evaluated(node, self._needed([node], draws), draws)
        # Earlier draws are needed too, since they advance the generator.
        needed = self._needed([node, *_drawn_before(node)], draws)
        devices = {n.meta["val"].device for n in random if n.meta["val"].device.type == "cuda"}
        with unwatched(), torch.random.fork_rng(devices=list(devices), device_type="cuda"):
            return self._evaluated(node, needed, draws)

    def _known(self, node: fx.Node, draws: float | None) -> bool:
        return draws is None and node in self._small and not (node.op == "call_function" and is_random(node))

    def _needed(self, targets: list[fx.Node], draws: float | None) -> set[fx.Node]:
        """Return the nodes needed to compute the targets, without the operands of known results."""
        seen, stack = set(targets), list(targets)
        while stack:
            node = stack.pop()
            for before in () if self._known(node, draws) else node.all_input_nodes:
                if before not in seen:
                    seen.add(before)
                    stack.append(before)
        return seen

    def _evaluated(self, target: fx.Node, needed: set[fx.Node], draws: float | None) -> Any:
        """Run the needed nodes in order, and release each value after its last use."""
        reads = Counter(before for n in needed if not self._known(n, draws) for before in n.all_input_nodes)
        values: dict[fx.Node, Any] = {}
        for node in target.graph.nodes:
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
            if node is target:
                break
        return values[target]

    def _run(self, node: fx.Node, values: dict[fx.Node, Any], draws: float | None) -> Any:
        if node.op == "placeholder":
            return self._sample_of(node)
        if draws is not None and is_random(node):
            return torch.full(node.meta["val"].shape, draws, dtype=node.meta["val"].dtype)
        args: Any
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])  # pyright: ignore
        if node.meta.get("in_place"):
            return args[0].bernoulli_(args[1])  # draws in the order of memory, like the step
        updated = {id(values[n]) for n in updated_buffers(node)}
        if updated:
            args = tuple(a.clone() if id(a) in updated else a for a in args)  # pyright: ignore  # the step updates them
        return with_autocast(node)(*args, **kwargs)

    def _sample_of(self, node: fx.Node) -> torch.Tensor:
        source: Source = node.meta["source"]
        if node not in self.sample:
            raise CaptureError(
                f"the module looks at the values of {source.kind} {source.name}, {self.where()}, which has no data on "
                "the meta device; pass it as a real tensor"
            )
        return self.sample[node].detach()

    def same_for_any_draw(self, node: fx.Node) -> Any:
        """Return the outcome of a comparison with uniform random numbers if any draw gives the same, else None.

        Such a decision (a layerdrop of 0) needs no guard.
        """
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
    """Return the random calls up to a node, in order."""
    drawn = []
    for earlier in node.graph.nodes:
        if earlier.op == "call_function" and is_random(earlier):
            drawn.append(earlier)
        if earlier is node:
            break
    return drawn


def _is_small(value: Any) -> bool:
    return not isinstance(value, (list, tuple)) and (
        not isinstance(value, torch.Tensor) or value.numel() <= _SMALL_ELEMENTS
    )
