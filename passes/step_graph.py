"""The joint program of a training step with aliasing resolved: kernels, and the storages they read and make."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import fx

from .calls import operation_name
from .sources import SourceKind
from .step_kernels import ComputeKernel, Kernel
from .step_text import step_text

StorageKind = Literal[SourceKind, "activation"]


@dataclass(frozen=True)
class Storage:
    """Bytes that exist as one allocation; views share them.

    kind: "activation" for results of kernels, else the kind of its source.
    base: the node whose value owns the storage, from which views are taken.
    """

    name: str
    size_bytes: int
    kind: StorageKind
    base: fx.Node


@dataclass(frozen=True)
class StepGraph:
    """All kernels in trace order, forward first.

    storage_of: for each node, the storage in which its value lies.
    overwrites: for each node that took the place of an operand, that operand.
    gradients: by parameter, input or output (one that retains its gradient), the gradient that it gets.
    savings: those of passes over the joint graph (`savings.Saving`).
    """

    kernels: tuple[Kernel, ...] = field(repr=False)
    storages: tuple[Storage, ...] = field(repr=False)
    storage_of: dict[fx.Node, int] = field(repr=False)
    outputs: tuple[fx.Node, ...]
    gradients: Mapping[fx.Node, fx.Node] = field(default_factory=dict, repr=False)
    overwrites: dict[fx.Node, fx.Node] = field(default_factory=dict, repr=False)
    savings: tuple[Any, ...] = ()
    block_names: tuple[str, ...] = ("step",)
    block_classes: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        return step_text(self)

    @cached_property
    def forward_length(self) -> int:
        """Return the number of kernels of forward."""
        return sum(kernel.phase == "forward" for kernel in self.kernels)

    @cached_property
    def compute_kernels(self) -> tuple[ComputeKernel, ...]:
        """Return the kernels that run calls, in order."""
        return tuple(kernel for kernel in self.kernels if isinstance(kernel, ComputeKernel))

    def backward_readers(self, storage: int) -> list[ComputeKernel]:
        """Return the kernels of backward that compute with a storage."""
        return [k for k in self.compute_kernels if k.phase == "backward" and storage in k.reads]

    def with_kernels(self, kernels: Iterable[Kernel]) -> StepGraph:
        """Return the same step with other kernels."""
        return replace(self, kernels=tuple(kernels))


def storage_key(value: torch.Tensor) -> int:
    """Return a key that is equal for tensors that share an allocation."""
    return value.untyped_storage()._cdata


def is_compute(node: fx.Node) -> bool:
    """Return whether a node is an ATen call (not a placeholder, the choice of one of several outputs, or the
    output).
    """
    return node.op == "call_function" and node.target is not operator.getitem


def tensors_of(node: fx.Node) -> Iterator[tuple[fx.Node, torch.Tensor]]:
    """Yield the nodes for the tensors that a call returns, with their fake values."""
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        yield node, value
    elif isinstance(value, (list, tuple)):
        for user in node.users:
            if user.target is operator.getitem and isinstance(user.meta["val"], torch.Tensor):
                yield user, user.meta["val"]


# Kernels that write their running statistics although their schema does not say so: the first of these arguments, and
# the argument that says whether they train.
_NORMALIZATIONS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
HIDDEN_UPDATES = dict.fromkeys((*_NORMALIZATIONS, *(f"{name}_averaged" for name in _NORMALIZATIONS)), (3, 5))


def updated_buffers(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the running statistics that a batch normalization in training mode updates.

    They are buffers, views of buffers, or values that forward made (instance normalization repeats its buffers for each
    sample).
    """
    if not is_compute(node):
        return ()
    name = operation_name(node)
    if name not in HIDDEN_UPDATES:
        return ()
    first, training = HIDDEN_UPDATES[name]
    if not node.args[training]:
        return ()
    return tuple(n for n in node.args[first : first + 2] if isinstance(n, fx.Node))
