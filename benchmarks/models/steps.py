"""Training steps of a module: what each leaves behind, compared to the bit, and the peak of one."""

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
"""What one step left behind, by name: outputs, gradients, buffers and the generator's state."""


@dataclass(frozen=True)
class Difference:
    """Something that a step of one module left otherwise than that of another.

    distance: ‖a − b‖; error: the same divided by ‖a‖; infinite where one of them lacks it or has another shape.
    """

    step: int
    what: str
    distance: float
    error: float


def seed_all(seed: int) -> None:
    """Sets torch's, numpy's and Python's generator."""
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors inside dicts, sequences and dataclasses, with their places; other objects are passed over."""
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
    """Forward and backward; returns the outputs by name.

    Backward starts from `loss`, or else from all outputs that have a gradient, with weights that are not all equal.
    """
    args, kwargs = call
    outputs = dict(named_tensors(module(*args, **kwargs), ""))
    able = {name: output for name, output in outputs.items() if output.requires_grad and name not in _MUTED}
    chosen = [able["loss"]] if "loss" in able else list(able.values())
    if not chosen:
        raise ValueError("no output requires a gradient")
    torch.autograd.backward(chosen, [_weights(output) for output in chosen])
    return outputs


def _weights(output: Tensor) -> Tensor:
    """The gradient at an output: 1 for a single number, else numbers between −1 and 1 that are always the same."""
    if output.numel() == 1 or output.is_complex():
        return torch.ones_like(output)
    return torch.empty_like(output).uniform_(-1, 1, generator=torch.Generator().manual_seed(output.numel()))


def trained(module: nn.Module, subject: Subject) -> list[Seen]:
    """What each of `STEPS` training steps left: outputs, gradients, buffers, the generator's state."""
    seen = []
    for number in range(STEPS):
        seed_all(number)
        call = subject.batch(number)
        clear_gradients(module)
        outputs = run_step(module, call)
        told: Seen = {f"output {name}": output.detach().clone() for name, output in outputs.items()}
        for name, parameter in module.named_parameters():
            told[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        told |= {f"gradient at {name}": tensor.grad for name, tensor in named_tensors(call) if tensor.is_leaf}
        told |= {f"buffer {name}": buffer.clone() for name, buffer in module.named_buffers()}
        told[_STATE] = torch.get_rng_state()
        seen.append(told)
        _descend(module)
    return seen


@torch.no_grad()
def _descend(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.sub_(parameter.grad, alpha=_LEARNING_RATE)


def clear_gradients(module: nn.Module) -> None:
    """Leaves every parameter without a gradient."""
    for parameter in module.parameters():
        parameter.grad = None


def differences(eager: list[Seen], other: list[Seen]) -> list[Difference]:
    """What is not the same to the bit; NaN is equal to NaN."""
    found = []
    for step, (its, mine) in enumerate(zip(eager, other, strict=True)):
        for what in {**its, **mine}:
            if what.split(".")[0] in {f"output {name}" for name in _MUTED}:
                continue
            off = _distance(its.get(what), mine.get(what))
            if off is not None:
                found.append(Difference(step, what, *off))
    return found


def _distance(one: Tensor | None, other: Tensor | None) -> tuple[float, float] | None:
    """‖one − other‖, absolute and relative; None where both are the same."""
    if one is None or other is None:
        return None if one is other else (math.inf, math.inf)
    if one.shape != other.shape or one.dtype != other.dtype:
        return math.inf, math.inf
    if one.is_sparse or other.is_sparse:
        one, other = one.to_dense(), other.to_dense()
    if torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all()):
        return None
    wide = torch.complex128 if one.is_complex() else torch.float64
    one, other = one.to(wide), other.to(wide)
    size = float(torch.linalg.vector_norm(one.flatten().abs()))
    distance = float(torch.linalg.vector_norm((one - other).flatten().abs()))
    return distance, distance / size if size else math.inf


def gradient_counts(seen: list[Seen]) -> tuple[int, int, bool]:
    """Of the first step: how many parameters there are, how many have a gradient, and whether all are finite."""
    gradients = {what: tensor for what, tensor in seen[0].items() if what.startswith("gradient of ")}
    there = [tensor for tensor in gradients.values() if tensor is not None]
    return len(gradients), len(there), all(bool(tensor.isfinite().all()) for tensor in there)


def peak_above_start(module: nn.Module, subject: Subject) -> int:
    """The most bytes that a step takes above those at its start, gradients absent there."""
    seed_all(STEPS)
    call = subject.batch(0)
    clear_gradients(module)
    peak_bytes = lowtide.measure_peak(lambda: run_step(module, call))
    clear_gradients(module)
    return peak_bytes


def resident_bytes(module: nn.Module, call: Call) -> int:
    """Parameters, buffers and inputs, each storage once."""
    tensors = [*module.parameters(), *module.buffers(), *(tensor for _, tensor in named_tensors(call))]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_sparse}.values()
    )
