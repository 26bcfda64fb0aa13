"""Has backward of operations that ATen treats otherwise while recording computed as eager computes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ....kernels.eager.eager_gradients import cumprod_gradient, filled_value_gradient, prod_gradient, whole_gradient

Formula = Callable[[Any, torch.Tensor], torch.Tensor]


def take_eager_branches(outputs: Iterable[torch.Tensor]) -> None:
    """Replaces what some nodes of autograd's graph will give by what eager's own backward gives on plain tensors.

    ATen looks at data in these formulas (is any factor zero?), but not where tensors are recorded or have subclasses:
    there it takes a way that is right for any data, and whose bits are other ones. What the nodes record themselves is
    read by nothing afterwards.
    """
    for node in _nodes(outputs):
        known = _FORMULAS.get(node.name())
        if known is not None:
            node.register_hook(_instead(node, *known))


def _nodes(outputs: Iterable[torch.Tensor]) -> Iterator[Any]:
    """All nodes of the graph that backward from these tensors runs through."""
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
    """A hook that gives another gradient in the place of one that a node has computed."""

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
    """A dimension as it was given: nodes tell a negative one modulo 2^64."""
    return dim - 2**64 if dim >= 2**63 else dim


# By the name of a node: which of its gradients is replaced, and what computes it.
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
