"""What a value that forward reads depends on, which decides whether it is guarded, checked or refused."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from ...passes.calls import inputs_of, is_random
from ..errors import CaptureError

aten = torch.ops.aten

# A decision by fewer draws than this is assumed to differ between steps.
_MANY_DRAWS = 32


def refuse_varying(node: fx.Node, where: Callable[[], str]) -> None:
    """Raise CaptureError if the value of a node would give each step a different program.

    where: describes the module and line that are running.
    """
    calls = _calls_behind(node)
    drawn = [call for call in calls if is_random(call)]
    parameter = next((n.meta["source"].name for call in calls for n in call.all_input_nodes if _is_parameter(n)), None)
    if drawn and parameter is None and sum(n.meta["val"].numel() for n in drawn) < _MANY_DRAWS:
        raise CaptureError(
            f"the module decides by a random number ({drawn[0].target}), {where()}: each step would need a different "
            "program; switch it off (for example layerdrop=0) or keep that part out of the rewritten module"
        )
    if (drawn or parameter is not None) and not _is_truth_value(node):
        what = f"a parameter ({parameter})" if parameter is not None else f"random numbers ({drawn[0].target})"
        raise CaptureError(
            f"the module looks at the values of {what}, {where()}, and takes a number or a shape from them: these may "
            "change with every step, so it has no fixed program; compute with the tensor instead, or keep that part "
            "out of the rewritten module (only decisions by true or false can be checked)"
        )


def is_decided_in_step(node: fx.Node) -> bool:
    """Return whether a value is known only while the step runs: it depends on parameters or random numbers."""
    return any(is_random(n) if n.op == "call_function" else _is_parameter(n) for n in inputs_of(node))


def looks_for_nan(node: fx.Node) -> bool:
    """Return whether autograd itself reads a gradient, as under `detect_anomaly`, without consequences."""
    (read,) = node.all_input_nodes or (None,)
    return torch.is_anomaly_check_nan_enabled() and read is not None and read.target is aten._is_any_true.default


def _calls_behind(node: fx.Node) -> list[fx.Node]:
    """Return a call and all calls that it is computed from, in the order in which they run."""
    seen = set(inputs_of(node))
    return [call for call in node.graph.nodes if call.op == "call_function" and call in seen]


def _is_parameter(node: fx.Node) -> bool:
    return node.op == "placeholder" and node.meta["source"].kind == "parameter"


def _is_truth_value(node: fx.Node) -> bool:
    """Return whether a node reads one truth value."""
    if node.target is not aten._local_scalar_dense.default:
        return False
    return node.all_input_nodes[0].meta["val"].dtype == torch.bool
