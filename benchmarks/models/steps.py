"""Trains a module for a few steps, compares their results to the bit, and measures the peak of a step."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import lowtide
import numpy
import torch
from torch import Tensor, nn

from .case import Call, Subject

STEPS = 2
_LEARNING_RATE = 1e-3
_STATE = "generator state"
_MUTED = ("past_key_values",)  # rewriting leaves caches out, and says so

Seen = dict[str, Tensor | None]
"""The results of one step by name: outputs, gradients, buffers and the generator's state."""


@dataclass(frozen=True)
class Difference:
    """A result that differs between the steps of two modules.

    distance: ‖a − b‖; infinite if one of them lacks it or has another shape.
    error: the distance divided by ‖a‖.
    """

    step: int
    what: str
    distance: float
    error: float


def seed_all(seed: int) -> None:
    """Seed torch's, numpy's and Python's generators."""
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors inside dicts, sequences and dataclasses, with their places; other objects are skipped."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from named_tensors(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from named_tensors(part, f"{name}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name, None) for field in fields(value)}
        yield from named_tensors(parts, name)


def run_step(module: nn.Module, call: Call) -> dict[str, Tensor]:
    """Run forward and backward; return the outputs by name.

    Backward starts from `loss`, or else from all outputs that have a gradient, with weights that are not all equal.
    """
    args, kwargs = call
    outputs = dict(named_tensors(module(*args, **kwargs), ""))
    differentiable = {name: output for name, output in outputs.items() if output.requires_grad and name not in _MUTED}
    chosen = [differentiable["loss"]] if "loss" in differentiable else list(differentiable.values())
    if not chosen:
        raise ValueError("no output requires a gradient")
    torch.autograd.backward(chosen, [_weights(output) for output in chosen])
    return outputs


def _weights(output: Tensor) -> Tensor:
    """Return the gradient at an output: 1 for a single number, otherwise fixed numbers between −1 and 1."""
    if output.numel() == 1 or output.is_complex():
        return torch.ones_like(output)
    return torch.empty_like(output).uniform_(-1, 1, generator=torch.Generator().manual_seed(output.numel()))


def trained(module: nn.Module, subject: Subject) -> list[Seen]:
    """Return the results of each of `STEPS` training steps: outputs, gradients, buffers, the generator's state."""
    seen = []
    for number in range(STEPS):
        seed_all(number)
        call = subject.batch(number)
        clear_gradients(module)
        outputs = run_step(module, call)
        tensors: Seen = {f"output {name}": output.detach().clone() for name, output in outputs.items()}
        for name, parameter in module.named_parameters():
            tensors[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        tensors |= {f"gradient at {name}": tensor.grad for name, tensor in named_tensors(call) if tensor.is_leaf}
        tensors |= {f"buffer {name}": buffer.clone() for name, buffer in module.named_buffers()}
        tensors[_STATE] = torch.get_rng_state()
        seen.append(tensors)
        _descend(module)
    return seen


@torch.no_grad()
def _descend(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.sub_(parameter.grad, alpha=_LEARNING_RATE)


def clear_gradients(module: nn.Module) -> None:
    """Leave every parameter without a gradient."""
    for parameter in module.parameters():
        parameter.grad = None


def differences(eager: list[Seen], other: list[Seen]) -> list[Difference]:
    """List what is not the same to the bit; NaN is equal to NaN."""
    differing = []
    for step, (expected, actual) in enumerate(zip(eager, other, strict=True)):
        for what in {**expected, **actual}:
            if what.split(".")[0] in {f"output {name}" for name in _MUTED}:
                continue
            distances = _distance(expected.get(what), actual.get(what))
            if distances is not None:
                differing.append(Difference(step, what, *distances))
    return differing


def _distance(left: Tensor | None, right: Tensor | None) -> tuple[float, float] | None:
    """Return ‖left − right‖, absolute and relative; None if both are the same."""
    if left is None or right is None:
        return None if left is right else (math.inf, math.inf)
    if left.shape != right.shape or left.dtype != right.dtype:
        return math.inf, math.inf
    if left.is_sparse or right.is_sparse:
        left, right = left.to_dense(), right.to_dense()
    if torch.equal(left, right) or bool(((left == right) | ((left != left) & (right != right))).all()):
        return None
    wide = torch.complex128 if left.is_complex() else torch.float64
    left, right = left.to(wide), right.to(wide)
    size = float(torch.linalg.vector_norm(left.flatten().abs()))
    distance = float(torch.linalg.vector_norm((left - right).flatten().abs()))
    return distance, distance / size if size else math.inf


def gradient_counts(seen: list[Seen]) -> tuple[int, int, bool]:
    """Count the parameters of the first step and those with a gradient, and return whether all gradients are finite."""
    gradients = {what: tensor for what, tensor in seen[0].items() if what.startswith("gradient of ")}
    there = [tensor for tensor in gradients.values() if tensor is not None]
    return len(gradients), len(there), all(bool(tensor.isfinite().all()) for tensor in there)


def peak_above_start(module: nn.Module, subject: Subject) -> int:
    """Measure the most bytes that a step takes above its start, gradients absent there."""
    seed_all(STEPS)
    call = subject.batch(0)
    clear_gradients(module)
    peak_bytes = lowtide.measure_peak(lambda: run_step(module, call))
    clear_gradients(module)
    return peak_bytes


def resident_bytes(module: nn.Module, call: Call) -> int:
    """Return the bytes of parameters, buffers and inputs, each storage once."""
    tensors = [*module.parameters(), *module.buffers(), *(tensor for _, tensor in named_tensors(call))]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_sparse}.values()
    )
