"""Makes backward read an activation's output where that holds as much as its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..graph_pass import GraphPass, rewrite_calls
from ..step_graph import storage_key

aten = torch.ops.aten


@dataclass(frozen=True)
class SaveOutputs(GraphPass):
    """Makes backward read the output, where that gives the same bits.

    before: y = aten.hardtanh.default(x, 0.0, 6.0); g = aten.hardtanh_backward.default(gradient, x, 0.0, 6.0)
    after:  y = aten.hardtanh.default(x, 0.0, 6.0); g = aten.hardtanh_backward.default(gradient, y, 0.0, 6.0)

    It applies only where another reader keeps the output and none keeps the input: otherwise nothing is saved.
    """

    name: ClassVar[str] = "saved_outputs"
    fidelity: ClassVar[str] = "bitwise"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        rewrites = {aten.hardtanh_backward.default: _save_hardtanh, aten.leaky_relu_backward.default: _save_leaky_relu}
        return rewrite_calls(graph, rewrites)


def _save_hardtanh(node: fx.Node) -> None:
    gradient, x, *bounds = node.args
    y = _output(node, x, (aten.hardtanh.default, aten.relu6.default))
    if y is not None:
        node.args = (gradient, y, *bounds)


def _save_leaky_relu(node: fx.Node) -> None:
    gradient, x, slope, _ = node.args
    y = _output(node, x, (aten.leaky_relu.default,))
    if y is not None and _number(slope) > 0:
        node.args = (gradient, y, slope, True)


@dataclass(frozen=True)
class InvertOutputs(GraphPass):
    """Computes the derivative from the output, which is equal to that from the input up to rounding.

    before: y = aten.elu.default(x); g = aten.elu_backward.default(gradient, 1.0, 1.0, 1.0, False, x)
    after:  y = aten.elu.default(x); g = aten.elu_backward.default(gradient, 1.0, 1.0, 1.0, True, y)

    It applies where `SaveOutputs` would. GELU, SiLU and similar functions can be inverted too, with a bit for each
    element. That takes longer than recomputing the output from the input, which keeps as little.
    """

    name: ClassVar[str] = "inverted_outputs"
    fidelity: ClassVar[str] = "rounding"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        return rewrite_calls(graph, {aten.elu_backward.default: _invert_elu})


def _invert_elu(node: fx.Node) -> None:
    gradient, alpha, scale, input_scale, is_result, x = node.args
    y = None if is_result else _output(node, x, (aten.elu.default, aten.celu.default, aten.selu.default))
    if y is not None and _number(alpha) >= 0:
        node.args = (gradient, alpha, scale, input_scale, True, y)


def _output(backward: fx.Node, x: Any, forwards: tuple[Any, ...]) -> fx.Node | None:
    """Return the output to read instead of the input, if that saves anything."""
    outputs = [user for user in x.users if user.target in forwards and user.meta["phase"] == "forward"]
    if len(outputs) != 1 or outputs[0].meta["val"].stride() != x.meta["val"].stride():
        return None
    gains = _backward_reads(outputs[0], backward) and not _backward_reads(x, backward)
    return outputs[0] if gains else None


def _backward_reads(node: fx.Node, but: fx.Node) -> bool:
    """Return whether backward reads a value, or a view of it, other than in one call."""
    storage = storage_key(node.meta["val"])
    pending, seen = [node], {node}
    while pending:
        for user in pending.pop().users:
            if user is but or user.op != "call_function" or user in seen:
                continue
            if user.meta["phase"] == "backward":
                return True
            value = user.meta["val"]
            if isinstance(value, torch.Tensor) and storage_key(value) == storage:
                seen.add(user)
                pending.append(user)
    return False


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")
