"""Writes into tensors in place, as eager does, where functionalization made changed copies of the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from ..step_graph import StepGraph
from ..step_kernels import Change, ComputeKernel, Kernel
from .changes import is_worth_a_copy, match_change


@dataclass(frozen=True)
class ChangeInPlace:
    """Makes one kernel of the calls that replace a part of a tensor, which changes it in place if that is its last use.

    before: part = aten.slice.Tensor(buffer, 0, 8, 16); new = aten.copy.default(part, rows)
            changed = aten.slice_scatter.default(buffer, new, 0, 8, 16)
    after:  aten.copy_.default(aten.slice.Tensor(buffer, 0, 8, 16), rows)     # changed is buffer from here on

    The planner decides, since the last use depends on recomputation; otherwise a copy of the buffer is changed.
    """

    name: ClassVar[str] = "change_in_place"
    fidelity: ClassVar[str] = "bitwise"

    def __call__(self, step: StepGraph) -> StepGraph:
        plain = [k for k in step.compute_kernels if len(k.calls) == 1 and len(k.makes) == 1]
        kernel_of = {k.calls[0]: k for k in plain if not k.random and not k.updates and not k.writes}
        changed: dict[fx.Node, ComputeKernel] = {}  # by the call that the kernel replaces
        gone: set[fx.Node] = set()
        last_read = {s: i for i, kernel in enumerate(step.kernels) for s in kernel.reads}
        last_read |= dict.fromkeys((step.storage_of[node] for node in step.outputs), len(step.kernels))
        for index in range(len(step.kernels) - 1, -1, -1):
            call = _first_call(step.kernels[index])
            if call not in kernel_of or call in gone:
                continue
            change = match_change(call, kernel_of, step.storage_of)
            if change is not None and (is_worth_a_copy(change) or _dies(step, change, index, last_read)):
                gone.update(change.calls)
                changed[change.calls[0]] = _joined(step, [kernel_of[replaced] for replaced in change.calls], change)
        kernels = []
        for kernel in step.kernels:
            call = _first_call(kernel)
            if call in changed:
                kernels.append(changed[call])
            elif call not in gone:
                kernels.append(kernel)
        return step.with_kernels(kernels)


def _first_call(kernel: Kernel) -> fx.Node | None:
    return kernel.calls[0] if isinstance(kernel, ComputeKernel) else None


def _dies(step: StepGraph, change: Change, index: int, last_read: Mapping[int, int]) -> bool:
    """Return whether nothing reads the changed value afterwards, if nothing is recomputed."""
    storage = step.storage_of[change.of]
    return step.storages[storage].kind == "activation" and last_read[storage] <= index and not change.aliased


def _joined(step: StepGraph, parts: Sequence[ComputeKernel], change: Change) -> ComputeKernel:
    """Return the kernel of a change, in the place of those of its calls."""
    within = {storage for part in parts for storage in part.makes}
    return replace(
        parts[0],
        name=parts[-1].name,
        calls=change.calls,
        reads=tuple(dict.fromkeys(s for part in parts for s in part.reads if s not in within)),
        makes=parts[-1].makes,
        repeatable=all(part.repeatable for part in parts),
        change=change,
        reuses=None if change.aliased else step.storage_of[change.of],
    )
