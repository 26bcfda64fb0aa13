"""Makes each block check its decisions together at its end, so that a device is waited for once in each block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..step_graph import StepGraph
from ..step_kernels import DecisionCheck, Kernel


@dataclass(frozen=True)
class GatherChecks:
    """Joins all checks of a block into one, at the end of the block's forward.

    before: lowtide.check.default([a], [True], [state]); ...; lowtide.check.default([b], [False], [state]); ...
    after:  ...; lowtide.check.default([a, b], [True, False], [state])
    """

    name: ClassVar[str] = "gather_checks"
    fidelity: ClassVar[str] = "bitwise"

    def __call__(self, step: StepGraph) -> StepGraph:
        forward, backward = step.kernels[: step.forward_length], step.kernels[step.forward_length :]
        checks: dict[int, list[DecisionCheck]] = {}
        for kernel in forward:
            if isinstance(kernel, DecisionCheck):
                checks.setdefault(kernel.block, []).append(kernel)
        if not checks:
            return step
        kernels: list[Kernel] = []
        for place, kernel in enumerate(forward):
            if not isinstance(kernel, DecisionCheck):
                kernels.append(kernel)
            is_last = place + 1 == len(forward) or forward[place + 1].block != kernel.block
            if is_last and kernel.block in checks:
                kernels.append(_joined(checks[kernel.block]))
        return step.with_kernels([*kernels, *backward])


def _joined(kernels: list[DecisionCheck]) -> DecisionCheck:
    calls = tuple(call for kernel in kernels for call in kernel.calls)
    reads = tuple(dict.fromkeys(read for kernel in kernels for read in kernel.reads))
    return replace(kernels[-1], calls=calls, reads=reads)
