"""Describes the start of a step: the tensors present, their gradients, and the bytes of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...passes.sources import Source
from ...solvers.problem.units import rounded_up
from ..capture.boundary.pytree import flatten
from ..capture.boundary.tensor_owners import Owners
from ..capture.call.caches import bind
from ..measure.device_presets import DevicePreset
from ..measure.optimizer_memory import OptimizerNeeds


@dataclass(frozen=True)
class Situation:
    """The start of a step.

    tensors: the tensors by source.
    grad_present: the sources of the tensors that have a `.grad`.
    resident_bytes: bytes alive during the whole step.
    floor_bytes: the least peak in bytes, reached by the optimizer's own step.
    """

    tensors: Mapping[Source, torch.Tensor]
    grad_present: frozenset[Source]
    resident_bytes: int
    floor_bytes: int = 0


def device_of(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.device:
    """Return the device of the module's first parameter, or of the first tensor among the arguments; meta counts as
    CPU.
    """
    inputs, _ = flatten((args, kwargs), "argument")
    first = next(iter([*model.parameters(), *model.buffers(), *inputs]), torch.empty(0))
    return torch.device("cpu") if first.device.type == "meta" else first.device


def tensors_of(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[Source, torch.Tensor]:
    """Return the parameters, buffers and inputs of a call by source."""
    kwargs, _ = bind(model, args, kwargs)
    inputs, structure = flatten((args, kwargs), "argument")
    return Owners(model).sources(inputs, structure)


def situation_with(
    tensors: Mapping[Source, torch.Tensor], granularity: int, needs: OptimizerNeeds | None = None
) -> Situation:
    """Return the situation in which a step begins on these tensors.

    granularity: the allocator's granularity in bytes.
    needs: the memory of the optimizer that steps afterwards.
    """
    # A tensor that is not a leaf has no .grad of its own: reading it warns.
    grads = {source: t.grad for source, t in tensors.items() if t.is_leaf and t.grad is not None}
    resident_bytes = storages_bytes([*tensors.values(), *grads.values()], granularity)
    floor_bytes = 0
    if needs is not None:
        resident_bytes += needs.state_bytes
        trained = [t for t in tensors.values() if t.requires_grad and t.is_leaf and t.grad is None]
        floor_bytes = resident_bytes + sum(t.numel() * t.element_size() for t in trained) + needs.scratch_bytes
    return Situation(tensors, frozenset(grads), resident_bytes, floor_bytes)


def storages_bytes(tensors: Iterable[torch.Tensor], granularity: int = 1) -> int:
    """Return the bytes of the distinct allocations that hold the tensors."""
    held = (tensor.untyped_storage() for tensor in tensors if tensor.layout is torch.strided)
    storages = {storage._cdata: storage.nbytes() for storage in held}
    return sum(rounded_up(size, granularity) for size in storages.values())


def rounding_bytes(device: torch.device, preset: DevicePreset | None) -> int:
    """Return the granularity of the allocator in bytes."""
    if preset is not None:
        return preset.allocator_rounding_bytes
    return 512 if device.type == "cuda" else 1
