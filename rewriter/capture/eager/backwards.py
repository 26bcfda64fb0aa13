"""Compute gradients as eager does, for operations whose backward ATen computes differently while recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ....kernels.eager.eager_gradients import cumprod_gradient, filled_value_gradient, prod_gradient, whole_gradient

Formula = Callable[[Any, torch.Tensor], torch.Tensor]


def take_eager_branches(outputs: Iterable[torch.Tensor]) -> None:
    """Replace the gradients of some autograd nodes by those of eager's own backward on plain tensors.

    ATen reads data in these formulas (is any factor zero?), but not if tensors are recorded or are subclasses: then it
    uses a formula for any data, with different bits. The calls recorded by the nodes themselves are unused afterwards.
    """
    for node in _nodes(outputs):
        known = _FORMULAS.get(node.name())
        if known is not None:
            node.register_hook(_instead(node, *known))


def _nodes(outputs: Iterable[torch.Tensor]) -> Iterator[Any]:
    """Yield all nodes of the graph through which backward from these tensors runs."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        yield node
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)


def _instead(node: Any, place: int, formula: Formula) -> Callable[..., Any]:
    """Return a hook that replaces one of the gradients that a node has computed."""

    def hook(computed: tuple[Any, ...], incoming: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if computed[place] is None or incoming[0] is None:
            return None
        return (*computed[:place], formula(node, incoming[0]), *computed[place + 1 :])

    return hook


def _whole(kind: str) -> Formula:
    return lambda node, gradient: whole_gradient(gradient, node._saved_self.detach(), kind)


def _prod_over(node: Any, gradient: torch.Tensor) -> torch.Tensor:
    return prod_gradient(gradient, node._saved_self.detach(), _signed(node._saved_dim), node._saved_keepdim)


def _signed(dim: int) -> int:
    """Return a dimension as it was given: nodes store a negative one modulo 2^64."""
    return dim - 2**64 if dim >= 2**63 else dim


# For each name of a node, the place of the gradient that is replaced, and its formula.
_FORMULAS: dict[str, tuple[int, Formula]] = {
    "ProdBackward0": (0, lambda node, gradient: prod_gradient(gradient, node._saved_self.detach(), None, False)),
    "ProdBackward1": (0, _prod_over),
    "CumprodBackward0": (
        0,
        lambda node, gradient: cumprod_gradient(gradient, node._saved_self.detach(), _signed(node._saved_dim)),
    ),
    "MaxBackward1": (0, _whole("max")),
    "MinBackward1": (0, _whole("min")),
    "MedianBackward0": (0, _whole("median")),
    "NanmedianBackward0": (0, _whole("nanmedian")),
    "MaskedFillBackward1": (1, lambda node, gradient: filled_value_gradient(gradient, node._saved_mask)),
}
