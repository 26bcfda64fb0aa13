"""Finds where backward can multiply a gradient with the levels of a derivative's code directly, and builds the
calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ...kernels.codec import FittedCodec
from ...kernels.packing.bits import dense
from ..calls import arguments_of
from ..step_graph import StepGraph


@dataclass(frozen=True)
class GradientProduct:
    """A call of backward that multiplies a gradient with a function of a value, and does nothing else."""

    call: fx.Node
    gradient: fx.Node
    value: fx.Node

    @property
    def stride(self) -> list[int]:
        """Return the planned stride of the gradient."""
        return list(self.gradient.meta["val"].stride())

    def levels(self, representatives: Sequence[float]) -> tuple[float, ...]:
        """Return the factors that it multiplies with where the value, of its own dtype, is one of these numbers, as
        float32.
        """
        at = torch.tensor(representatives, dtype=self.value.meta["val"].dtype).float()
        replacements = {self.gradient: torch.ones_like(at), self.value: at}
        arguments = [
            replacements[argument] if isinstance(argument, fx.Node) else argument for argument in self.call.args
        ]
        assert callable(self.call.target)
        levels = self.call.target(*arguments, **self.call.kwargs)
        return tuple(float(f"{argument:.9g}") for argument in levels.tolist())  # nine digits identify a float32


@dataclass(frozen=True)
class LevelProduct:
    """The product of a gradient with a code's levels, in place of a call that decodes and multiplies.

    call: a call on placeholders, of which the first are the gradient and the code.
    """

    replaced: GradientProduct
    call: fx.Node


def match_gradient_product(step: StepGraph, storage: int) -> GradientProduct | None:
    """Return the one call of backward that reads a storage, if its other operand is a gradient laid out alike.

    The gradient and the result must lie in memory as all of the storage does; otherwise None. The codecs of a
    derivative
    (`derivative_codecs`) are for values that are multiplied with that derivative alone.
    """
    readers = step.backward_readers(storage)
    if len(readers) != 1 or len(readers[0].calls) != 1 or readers[0].writes:
        return None
    (call,) = readers[0].calls
    gradient = arguments_of(call).get("grad_output")
    others = [node for node in call.all_input_nodes if node is not gradient]
    if not isinstance(gradient, fx.Node) or len(others) != 1 or step.storage_of.get(others[0]) != storage:
        return None
    base, value, incoming, made = (
        node.meta["val"] for node in (step.storages[storage].base, others[0], gradient, call)
    )
    alike = _layout(value) == _layout(incoming) == _layout(made) and value.dtype == base.dtype
    whole = dense(value) and value.numel() == base.numel()
    return GradientProduct(call, gradient, others[0]) if alike and whole else None


def build_level_product(graph: fx.Graph, codec: FittedCodec, code: fx.Node, replaced: GradientProduct) -> LevelProduct:
    """Return the product with a codec's usual levels, in a graph that has a placeholder for the code."""
    gradient = graph.placeholder("gradient")
    gradient.meta["val"] = replaced.gradient.meta["val"]
    keywords = {"levels": replaced.levels(codec.arguments[1]["representatives"]), "bits": codec.arguments[1]["bits"]}
    keywords["stride"] = replaced.stride
    call = graph.call_function(codec.multiply, (gradient, code), keywords)
    call.meta["val"] = codec.multiply(gradient.meta["val"], code.meta["val"], **keywords)
    return LevelProduct(replaced, call)


def _layout(value: torch.Tensor) -> tuple[object, ...]:
    """Return a key that is equal for tensors of one type whose elements lie alike in memory."""
    places = [place for place in zip(value.shape, value.stride(), strict=True) if place[0] > 1]
    return value.shape, tuple(places), value.dtype
