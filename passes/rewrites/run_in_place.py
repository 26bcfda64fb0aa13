"""Makes a kernel write its result over an operand that nothing else reads, as eager's in-place operations do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from ..calls import rounds_by_layout
from ..step_graph import StepGraph
from ..step_kernels import ComputeKernel, Kernel

# The in-place variant of each functional operation, with the same bits. That of bernoulli has an irregular name.
IN_PLACE = {
    "aten.bernoulli.p": "aten.bernoulli_.float",
    "aten.add.Tensor": "aten.add_.Tensor",
    "aten.mul.Tensor": "aten.mul_.Tensor",
    "aten.div.Scalar": "aten.div_.Scalar",
    "aten.div.Tensor": "aten.div_.Tensor",
}


# Kernels that may write over their first operand, row by row: the variant, and the name of its output argument.
WRITTEN_OUT = {
    "aten._log_softmax_backward_data.default": ("aten._log_softmax_backward_data.out", "out"),
    "aten._softmax_backward_data.default": ("aten._softmax_backward_data.out", "grad_input"),
}


# The operations that dropout runs in place. Joining more would make the planner's choices coarser.
_JOINED = ("aten.bernoulli.p", "aten.div.Scalar", "aten.div.Tensor")


def in_place_variant(call: fx.Node) -> str:
    """Return the name of the in-place variant of a call."""
    return IN_PLACE[str(call.target)]


@dataclass(frozen=True)
class RunInPlace:
    """Joins a kernel with the one before it when it can work in place on the result of that one.

    before: empty = aten.empty_strided(...); noise = aten.bernoulli.p(empty, 0.9); mask = aten.div.Scalar(noise, 0.9)
    after:  mask = aten.empty_strided(...); aten.bernoulli_.float(mask, 0.9); aten.div_.Scalar(mask, 0.9), one kernel

    Eager runs dropout like this, and functionalization splits it.
    """

    name: ClassVar[str] = "run_in_place"
    fidelity: ClassVar[str] = "bitwise"

    def __call__(self, step: StepGraph) -> StepGraph:
        readers = Counter(s for kernel in step.kernels for s in kernel.reads)
        kept = {step.storage_of[node] for node in step.outputs}
        kernels: list[Kernel] = []
        for kernel in step.kernels:
            match kernels[-1:], kernel:
                case [ComputeKernel() as first], ComputeKernel() if _joins(step, first, kernel, readers, kept):
                    kernels[-1] = _joined(first, kernel)
                case _, ComputeKernel(calls=calls) if any(call.meta.get("in_place") for call in calls):
                    raise ValueError(
                        f"{kernel.name} draws random numbers in place, but the tensor it draws into is read elsewhere "
                        "too"
                    )
                case _:
                    kernels.append(kernel)
        return step.with_kernels(kernels)


def _joins(step: StepGraph, first: ComputeKernel, second: ComputeKernel, readers: Counter[int], kept: set[int]) -> bool:
    if first.phase != second.phase or len(first.makes) != 1:
        return False
    (call,) = second.calls
    operand = call.args[0] if call.args else None
    if str(call.target) not in _JOINED or operand is not first.calls[-1] or not isinstance(operand, fx.Node):
        return False
    (made,) = first.makes
    before, after = operand.meta["val"], call.meta["val"]
    alike = (before.shape, before.stride(), before.dtype) == (after.shape, after.stride(), after.dtype)
    fits = alike and not rounds_by_layout(call)
    return fits and readers[made] == 1 and made not in kept and _once(call, operand)


def _once(call: fx.Node, operand: fx.Node) -> bool:
    """Return whether the operand occurs only once: x * x cannot be overwritten while it is read."""
    return sum(argument is operand for argument in call.args) == 1 and torch.is_tensor(operand.meta["val"])


def _joined(first: ComputeKernel, second: ComputeKernel) -> ComputeKernel:
    reads = dict.fromkeys((*first.reads, *(s for s in second.reads if s not in first.makes)))
    return replace(
        second,
        calls=(*first.calls, *second.calls),
        reads=tuple(reads),
        random=first.random or second.random,
        repeatable=first.repeatable and second.repeatable,
    )
