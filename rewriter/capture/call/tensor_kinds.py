"""What a captured step depends on of tensors besides their numbers: how they lie, and which of them share memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter


@dataclass(frozen=True)
class Memory:
    """Where the elements of a tensor lie. storage: identifies the allocation; start, stop: bytes within it."""

    storage: int
    start: int
    stop: int

    def overlaps(self, other: Memory) -> bool:
        """Whether some bytes between the first and the last element belong to both."""
        return self.storage == other.storage and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True)
class Owned:
    """The parameters and buffers of a module: which tensors they are, and where they lie."""

    index_of: dict[int, int] = field(default_factory=dict)
    lying: dict[int, list[tuple[int, Memory]]] = field(default_factory=dict)

    @staticmethod
    def of(tensors: Sequence[torch.Tensor]) -> Owned:
        """Those of these tensors, numbered in their order; the tensors must outlive it."""
        owned = Owned({id(tensor): index for index, tensor in enumerate(tensors)})
        for index, tensor in enumerate(tensors):
            memory = memory_of(tensor)
            if memory is not None:
                owned.lying.setdefault(memory.storage, []).append((index, memory))
        return owned


def kind_of(tensor: torch.Tensor) -> Hashable:
    """All of a tensor but its numbers and its place in memory.

    The offset in its storage is left out: batches are slices of one tensor, and kernels compute alike at each of them.
    """
    if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
        return type(tensor)
    return (
        type(tensor),
        tensor.shape,
        tensor.stride() if tensor.layout is torch.strided else tensor.layout,
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
        tensor.is_leaf,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def memory_of(tensor: torch.Tensor) -> Memory | None:
    """Where a tensor lies; None where it has no storage of its own (sparse ones)."""
    if tensor.layout is not torch.strided:
        return None
    storage = storage_of(tensor)
    if storage is None:
        return None
    size_bytes = tensor.element_size()
    start = int(tensor.storage_offset()) * size_bytes
    last = int(sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)))
    return Memory(storage, start, start + (last + 1) * size_bytes if tensor.numel() else start)


def storage_of(tensor: torch.Tensor) -> int | None:
    """What identifies the allocation that a tensor lies in; None for one without."""
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError, ValueError):  # ValueError: a lazy module's, before its first batch
        return None


def sharing_of(tensors: Iterable[torch.Tensor], owned: Owned) -> tuple[Hashable, ...]:
    """For each tensor which others it is, or shares memory with: own ones by number, those before it by place.

    None for a tensor by itself. An own tensor is told as ("own", number), one given before as ("again", place), and one
    that shares a storage as pairs (another tensor, whether they overlap).
    """
    told: list[Hashable] = []
    places: dict[int, int] = {}
    storages: dict[int, list[int]] = {}
    given: list[torch.Tensor] = []
    for place, tensor in enumerate(tensors):
        given.append(tensor)
        first = places.setdefault(id(tensor), place)
        own = owned.index_of.get(id(tensor))
        if own is not None:
            told.append(("own", own))
        elif first != place:
            told.append(("again", first))
        else:
            storage = storage_of(tensor)
            before = storages.setdefault(storage, []) if storage is not None else []
            is_shared = bool(before) or storage in owned.lying
            told.append(_overlaps(tensor, given, before, owned) if is_shared else None)
            before.append(place)
    return tuple(told)


def _overlaps(tensor: torch.Tensor, given: list[torch.Tensor], before: list[int], owned: Owned) -> Hashable:
    """The tensors that lie in the same storage, and whether they overlap."""
    memory = memory_of(tensor)
    if memory is None:
        return None
    told = [("own", index, memory.overlaps(other)) for index, other in owned.lying.get(memory.storage, ())]
    for place in before:
        other = memory_of(given[place])
        told.append(("given", place, other is not None and memory.overlaps(other)))
    return tuple(told)


def sharing_among(tensors: Sequence[torch.Tensor]) -> Hashable:
    """Which of a module's own tensors lie in one storage, and where in it; those by themselves are left out."""
    lying = Owned.of(tensors).lying
    return tuple(
        tuple((index, memory.start, memory.stop) for index, memory in members)
        for members in lying.values()
        if len(members) > 1
    )
