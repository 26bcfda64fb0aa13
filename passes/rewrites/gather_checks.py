"""Makes each block check its decisions together at its end, so that a device is waited for once in each block."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from ...kernels.checks import check
from ..step_graph import Kernel, StepGraph


def gather_checks(step: StepGraph) -> StepGraph:
    """Return the step with all checks of a block joined into one, at the end of the block's forward.

    before: require([a], [True], [state]); …; require([b], [False], [state]); …
    after:  …; require([a, b], [True, False], [state])
    """
    forward, backward = step.kernels[: step.forward_length], step.kernels[step.forward_length :]
    checks: dict[int, list[Kernel]] = {}
    for kernel in forward:
        if kernel.role == "check":
            checks.setdefault(kernel.block, []).append(kernel)
    if not checks:
        return step
    kernels: list[Kernel] = []
    for place, kernel in enumerate(forward):
        if kernel.role != "check":
            kernels.append(kernel)
        is_last = place + 1 == len(forward) or forward[place + 1].block != kernel.block
        if is_last and kernel.block in checks:
            kernels.append(_joined(checks[kernel.block]))
    return step.with_kernels([*kernels, *backward])


def _joined(kernels: list[Kernel]) -> Kernel:
    calls = [kernel.calls[0] for kernel in kernels]
    first, last = calls[0], calls[-1]
    if first is last:
        return kernels[0]
    with first.graph.inserting_after(last):
        joined: fx.Node = first.graph.call_function(
            check,
            (
                [value for call in calls for value in call.args[0]],  # pyright: ignore
                [expected for call in calls for expected in call.args[1]],  # pyright: ignore
                first.args[2],
            ),
        )
    joined.meta = dict(last.meta)
    reads = dict.fromkeys(read for kernel in kernels for read in kernel.reads)
    return replace(kernels[-1], name=joined.name, calls=(joined,), reads=tuple(reads))
