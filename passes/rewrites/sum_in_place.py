"""Adds gradients up in place, as autograd's engine does; also writes products and softmaxes' gradients in place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import fx

from ..calls import rounds_by_layout
from ..step_graph import StepGraph
from ..step_kernels import ComputeKernel, Kernel
from .run_in_place import WRITTEN_OUT

_WRITTEN_OVER = ("aten.add.Tensor", "aten.mul.Tensor")


@dataclass(frozen=True)
class SumInPlace:
    """Writes a sum or product of gradients, or a softmax's gradient, over the operand that is read for the last time.

    before: total = aten.add.Tensor(first, second)     # first is read nowhere after this
    after:  aten.add_.Tensor(first, second)            # total is first from here on

    It applies only where backward depends on the incoming gradients. These kernels run once and in order, so
    overwritten values are never needed again. Neither a sum nor a product of two real numbers depends on their
    order, so either operand may be overwritten; products of complex ones do where operands lie differently.
    """

    name: ClassVar[str] = "sum_in_place"
    fidelity: ClassVar[str] = "bitwise"

    def __call__(self, step: StepGraph) -> StepGraph:
        last_read = {s: i for i, kernel in enumerate(step.kernels) for s in kernel.reads}
        # The operand of one sum may be the result of another: `moved` gives the storage of results.
        fixed = {step.storage_of[node] for node in (*step.outputs, *step.gradients.values())}
        made_once = {s for k in step.compute_kernels if not k.repeatable for s in k.makes}
        moved: dict[int, int] = {}
        kernels: list[Kernel] = []
        overwrites = dict(step.overwrites)
        for index, kernel in enumerate(step.kernels):
            kernel = _with_moved_reads(kernel, moved)
            operand = _destination(step, kernel, index, last_read, fixed, made_once, moved)
            if not isinstance(kernel, ComputeKernel) or operand is None:
                kernels.append(kernel)
                continue
            (result,) = kernel.makes
            storage = moved.get(step.storage_of[operand], step.storage_of[operand])
            moved[result] = storage
            last_read[storage] = max(last_read.get(storage, -1), last_read.get(result, -1))
            if result in fixed:
                fixed.add(storage)
            overwrites[kernel.calls[0]] = operand
            kernels.append(replace(kernel, makes=(), writes=(storage,), destination=operand))
        storage_of = {node: moved.get(storage, storage) for node, storage in step.storage_of.items()}
        return replace(step, kernels=tuple(kernels), storage_of=storage_of, overwrites=overwrites)


def _with_moved_reads(kernel: Kernel, moved: dict[int, int]) -> Kernel:
    reads = tuple(dict.fromkeys(moved.get(s, s) for s in kernel.reads))
    if reads == kernel.reads:
        return kernel
    if not isinstance(kernel, ComputeKernel) or kernel.reuses is None:
        return replace(kernel, reads=reads)
    return replace(kernel, reads=reads, reuses=moved.get(kernel.reuses, kernel.reuses))


def _destination(
    step: StepGraph,
    kernel: Kernel,
    index: int,
    last_read: dict[int, int],
    fixed: set[int],
    made_once: set[int],
    moved: dict[int, int],
) -> fx.Node | None:
    """Return the operand that a sum or product can be written over, if there is one."""
    if not isinstance(kernel, ComputeKernel) or kernel.phase != "backward" or kernel.change is not None:
        return None
    if kernel.repeatable or len(kernel.calls) != 1:
        return None
    (call,) = kernel.calls
    if call.kwargs or rounds_by_layout(call):
        return None
    if str(call.target) in WRITTEN_OUT:
        pairs = [(call.args[0], call.args[1])]
    elif str(call.target) in _WRITTEN_OVER and len(call.args) == 2:
        pairs = [(call.args[0], call.args[1]), (call.args[1], call.args[0])]
    else:
        return None
    for operand, other in pairs:
        if not isinstance(operand, fx.Node):
            continue
        before = moved.get(step.storage_of[operand], step.storage_of[operand])
        other_storage = moved.get(step.storage_of[other], step.storage_of[other]) if isinstance(other, fx.Node) else -1
        free = (
            before in made_once
            and before not in fixed
            and last_read.get(before, -1) <= index
            and before != other_storage
        )
        if free and _fills(step, operand, call, before):
            return operand
    return None


def _fills(step: StepGraph, operand: fx.Node, call: fx.Node, storage: int) -> bool:
    """Return whether an operand is laid out like the result and is all there is in its storage."""
    before, after = operand.meta["val"], call.meta["val"]
    alike = (before.shape, before.stride(), before.dtype) == (after.shape, after.stride(), after.dtype)
    size_bytes = before.numel() * before.element_size()
    return alike and size_bytes == step.storages[storage].size_bytes and size_bytes > 0
