"""The nodes of autograd's graph: which ones a gradient reaches, and which one receives it."""

from __future__ import annotations

from collections.abc import KeysView
from typing import Any

import torch


def nodes_behind(*tensors: torch.Tensor) -> KeysView[Any]:
    """Return all autograd nodes that the gradients of some tensors may reach, including those of leaves.

    Their order follows from the graph alone.
    """
    waiting = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen, reached = set(waiting), dict[Any, None]()
    while waiting:
        node = waiting.pop()
        reached[node] = None
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    return reached.keys()


def leaves_behind(*tensors: torch.Tensor) -> set[int]:
    """Return the ids of all leaves that the gradients of some tensors may reach."""
    # A node that accumulates gradients knows its leaf.
    return {id(node.variable) for node in nodes_behind(*tensors) if hasattr(node, "variable")} | {
        id(tensor) for tensor in tensors if tensor.is_leaf and tensor.requires_grad
    }


def gradient_edge(target: Any) -> tuple[Any, int]:
    """Return the autograd node that receives the gradient of a tensor (or a `GradientEdge`), and its output's number.

    The node of a leaf is None.
    """
    if isinstance(target, torch.autograd.graph.GradientEdge):
        return target.node, target.output_nr
    return target.grad_fn, target.output_nr
