"""Writes a step graph as a program, one kernel per line, with shapes, dtypes, bytes and modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch

from ..solvers.problem.plain_text import shortened
from ..solvers.problem.units import format_bytes
from .calls import dtype_name, operation_name
from .step_kernels import BufferUpdate, ComputeKernel, GradAccumulate, Kernel

_MOST_LETTERS = 240  # of a line
_MOST_READS = 8  # storages named in a line


def step_text(step: Any) -> str:
    """Return the text of a `StepGraph`: what is there before it, then its kernels in trace order, by block."""
    saved: Counter[str] = Counter()
    for saving in step.savings:
        saved[saving.name] += saving.saved_bytes
    lines = [
        f"StepGraph: {len(step.kernels)} kernels ({step.forward_length} forward) in {len(step.block_classes)} blocks "
        f"of {len(set(step.block_classes))} classes, {len(step.storages)} storages",
        *(f"note: {name} saves {format_bytes(saved_bytes)}" for name, saved_bytes in saved.items()),
        _row("bytes", "kernel", "module"),
        "before the step:",
        *(
            _row(format_bytes(storage.size_bytes), _typed(storage), storage.kind)
            for storage in step.storages
            if storage.kind not in ("activation", "tangent")
        ),
        *_program(step),
    ]
    return "\n".join(shortened(line, _MOST_LETTERS) for line in lines)


def _program(step: Any) -> Iterator[str]:
    """Yield a title for each block and a line for each of its kernels, and the results of forward and backward."""
    for (phase, block), kernels in groupby(step.kernels, lambda kernel: (kernel.phase, kernel.block)):
        if phase == "backward" and block == len(step.block_classes) - 1:
            yield f"forward returns {_names(step, step.outputs)}"
        yield f"{phase} of block {block}, {step.block_names[block]} (class {step.block_classes[block]}):"
        for kernel in kernels:
            made_bytes = sum(step.storages[number].size_bytes for number in kernel.makes)
            size = format_bytes(made_bytes) if kernel.makes else ""
            yield _row(size, _code_of(step, kernel), f"{kernel.module}{_marks(kernel)}")
    yield f"backward returns {_names(step, step.gradients.values())}"


def _row(size: str, code: str, comment: str) -> str:
    return f"{size:>10}  {code}" + (f"  # {comment}" if comment else "")


def _code_of(step: Any, kernel: Kernel) -> str:
    """Return a kernel as an assignment: `mm: f32[48, 64] = mm(input, weight)`."""
    made = ", ".join(_typed(step.storages[number]) for number in kernel.makes or kernel.writes)
    reads = [step.storages[number].name for number in kernel.reads[:_MOST_READS]]
    reads += [f"and {len(kernel.reads) - _MOST_READS} more"] if len(kernel.reads) > _MOST_READS else []
    calls = kernel.calls if isinstance(kernel, ComputeKernel) else ()
    name = " > ".join(map(operation_name, calls)) or kernel.role
    has_target = isinstance(kernel, (BufferUpdate, GradAccumulate))
    target = f" to {kernel.target.meta['source'].name}" if has_target else ""
    return f"{made + ' = ' if made else ''}{name}({', '.join(reads)}){target}"


def _typed(storage: Any) -> str:
    """Return a storage's name with the dtype and shape of the value that owns it: `mm: f32[48, 64]`."""
    value = storage.base.meta["val"]
    kind = f"{dtype_name(value.dtype)}{[int(n) for n in value.shape]}" if isinstance(value, torch.Tensor) else value
    return f"{storage.name}: {kind}"


def _marks(kernel: Kernel) -> str:
    """Return what is unusual about a kernel, in brackets."""
    marks: dict[str, Any] = {
        "runs once": not kernel.repeatable and kernel.phase == "forward",
        "in place": kernel.writes,
    }
    if isinstance(kernel, ComputeKernel):
        updated = ", ".join(node.name for node in kernel.updates)
        marks = {"random": kernel.random} | marks | {f"updates {updated}": updated}
        marks["may change its operand"] = kernel.reuses is not None
    named = [name for name, applies in marks.items() if applies]
    return f" ({', '.join(named)})" if named else ""


def _names(step: Any, nodes: Any) -> str:
    names = (step.storages[step.storage_of[node]].name for node in nodes if node in step.storage_of)
    return ", ".join(names) or "nothing"
