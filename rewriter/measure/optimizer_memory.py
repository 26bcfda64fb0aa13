"""Finds the bytes of an optimizer's state and of its step by running a shadow copy on tensors without data."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

from ..capture.torch_internals import OperationMode, tensors_without_data

# A Python number that meets a tensor becomes a tensor itself inside the kernel, which no mode sees; measured: 12.
_NUMBER_BYTES = 16


@dataclass(frozen=True)
class OptimizerNeeds:
    """The memory of an optimizer.

    state_bytes: the size of its state after its first step.
    scratch_bytes: the bytes that a step allocates in addition.
    """

    state_bytes: int
    scratch_bytes: int


class _Counter(OperationMode):
    """Counts the live bytes of the storages made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # The value of a norm, for example, does not change the allocations; with 1, code may divide by 1 - 1.
            return 0.5
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor)
        return out

    def ignore(self, tensor: torch.Tensor) -> None:
        """Exclude a tensor that existed before."""
        self._seen.add(tensor.untyped_storage()._cdata)

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size_bytes = storage.nbytes()
        self.live_bytes += size_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._release, key, size_bytes)

    def _release(self, key: int, size_bytes: int) -> None:
        self._seen.discard(key)
        self.live_bytes -= size_bytes


def optimizer_needs(optimizer: torch.optim.Optimizer, device: torch.device) -> OptimizerNeeds:
    """Return the bytes of an optimizer's state and of its step's temporaries on `device`; the optimizer is not touched.

    A shadow copy of the same class and settings takes two steps on tensors without data. The first step makes the
    state; the second is counted.
    """
    required = [p for p in inspect.signature(optimizer.step).parameters.values() if p.default is p.empty]
    if required:
        raise ValueError(
            f"{type(optimizer).__name__}.step() runs the model again through its {required[0].name}, so its memory "
            "cannot be separated from the step's; leave optimizer= out and lower the budget by the bytes it holds"
        )
    here = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())
    counter = _Counter()
    with tensors_without_data():
        shadow = _shadow_optimizer(optimizer, device if here else torch.device("meta"), on_cuda=device.type == "cuda")
        with counter:
            for parameter in (p for group in shadow.param_groups for p in group["params"]):
                counter.ignore(parameter)
                if parameter.grad is not None:
                    counter.ignore(parameter.grad)
            shadow.step()
            state_bytes = counter.live_bytes
            counter.peak_bytes = state_bytes
            shadow.step()
    scratch_bytes = counter.peak_bytes - state_bytes
    return OptimizerNeeds(state_bytes, scratch_bytes + _NUMBER_BYTES)


def _shadow_optimizer(optimizer: torch.optim.Optimizer, device: torch.device, on_cuda: bool) -> torch.optim.Optimizer:
    """Build an optimizer of the same class over parameters without data, with the choices that the real one makes."""
    groups = []
    for group in optimizer.param_groups:
        settings: dict[str, Any] = {k: copy.copy(v) for k, v in group.items() if k != "params"}
        if on_cuda and settings.get("foreach", False) is None and not settings.get("fused"):
            # On CUDA the default is to work on all parameters at once, which takes temporaries of their size.
            settings["foreach"] = True
        parameters = []
        for parameter in group["params"]:
            blank = torch.nn.Parameter(_blank(parameter, device), parameter.requires_grad)
            if parameter.requires_grad:
                blank.grad = _blank(parameter, device)
            parameters.append(blank)
        groups.append({**settings, "params": parameters})
    shadow: Any = object.__new__(type(optimizer))
    shadow.__setstate__({"state": defaultdict(dict), "param_groups": groups, "defaults": dict(optimizer.defaults)})
    return shadow


def _blank(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
