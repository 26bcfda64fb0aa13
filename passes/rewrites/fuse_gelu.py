"""Recognizes GELU's tanh form written out in products and powers, and runs it as one operation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..backward_regions import erase_unused, match_backward
from ..graph_pass import GraphPass, rewrite_calls

aten = torch.ops.aten


@dataclass(frozen=True)
class WrittenGelu(GraphPass):
    """Replaces 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) and its backward by torch's own GELU, which keeps only x.

    before: cube = aten.pow.Tensor_Scalar(x, 3.0); ...; y = aten.mul.Tensor(half, one_plus)
    after:  y = aten.gelu.default(x, approximate="tanh")
    """

    name: ClassVar[str] = "written_gelu"
    fidelity: ClassVar[str] = "rounding"

    def rewrite(self, graph: fx.GraphModule) -> bool:
        """Make the replacements in the graph itself; return whether there were any."""
        return rewrite_calls(graph, {aten.tanh.default: _replace})


def _replace(tanh: fx.Node) -> None:
    match = _written_out(tanh) if tanh.meta["phase"] == "forward" else None
    if match is None:
        return
    graph = tanh.graph
    x, result, forward = match
    backward = match_backward(forward, x)
    known = {*forward, *(backward.nodes if backward else ())}
    if backward is None or any(user not in known for node in forward - {result} for user in node.users):
        return
    alike = {(n.meta["val"].shape, n.meta["val"].stride(), n.meta["val"].dtype) for n in (x, result, backward.outgoing)}
    if len(alike) != 1:
        return
    with graph.inserting_before(result):
        gelu = graph.call_function(aten.gelu.default, (x,), {"approximate": "tanh"})
    with graph.inserting_before(backward.outgoing):
        gradient = graph.call_function(aten.gelu_backward.default, (backward.incoming, x), {"approximate": "tanh"})
    for old, new in ((result, gelu), (backward.outgoing, gradient)):
        new.meta = dict(old.meta)
        old.replace_all_uses_with(new)
    erase_unused(graph, known)


def _written_out(tanh: fx.Node) -> tuple[fx.Node, fx.Node, set[fx.Node]] | None:
    """Return (x, the result, all operations) around a tanh, if they are GELU's."""
    scaled = tanh.args[0]
    inner, factor = _operands(scaled, aten.mul.Tensor)
    if not _near(factor, math.sqrt(2.0 / math.pi)):
        return None
    x, cubic = _operands(inner, aten.add.Tensor)
    if not isinstance(cubic, fx.Node) or not isinstance(x, fx.Node):
        return None
    if cubic.target is not aten.mul.Tensor:
        x, cubic = cubic, x
    cube, small = _operands(cubic, aten.mul.Tensor)
    base, power = _operands(cube, aten.pow.Tensor_Scalar)
    plus = next((user for user in tanh.users if _operands(user, aten.add.Tensor) == (tanh, 1.0)), None)
    if not _near(small, 0.044715) or base is not x or power != 3.0 or plus is None or x is None:
        return None
    for result in plus.users:
        others = [argument for argument in result.args if argument is not plus]
        half = others[0] if result.target is aten.mul.Tensor and len(others) == 1 else None
        if isinstance(half, fx.Node) and _operands(half, aten.mul.Tensor) == (x, 0.5):
            return x, result, {scaled, inner, cubic, cube, tanh, plus, half, result}  # pyright: ignore
    return None


def _operands(node: Any, target: Any) -> tuple[Any, Any]:
    """Return the two operands of a call of a target, a number last; Nones for anything else."""
    if not isinstance(node, fx.Node) or node.target is not target or len(node.args) != 2 or node.kwargs:
        return None, None
    first, second = node.args
    return (second, first) if isinstance(second, fx.Node) and not isinstance(first, fx.Node) else (first, second)


def _near(number: Any, expected: float) -> bool:
    return isinstance(number, float) and math.isclose(number, expected, rel_tol=1e-6)
