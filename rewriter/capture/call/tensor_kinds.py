"""Properties of tensors, except their elements, on which a captured step depends: layout and shared memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter


@dataclass(frozen=True)
class Memory:
    """The memory of the elements of a tensor.

    storage: identifies the allocation.
    start, stop: bytes within it.
    """

    storage: int
    start: int
    stop: int

    def overlaps(self, other: Memory) -> bool:
        """Return whether some bytes between the first and the last element belong to both."""
        return self.storage == other.storage and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True)
class Owned:
    """The parameters and buffers of a module, by id and by storage."""

    index_of: dict[int, int] = field(default_factory=dict)
    by_storage: dict[int, list[tuple[int, Memory]]] = field(default_factory=dict)

    @staticmethod
    def of(tensors: Sequence[torch.Tensor]) -> Owned:
        """Number these tensors in their order; they must outlive the result."""
        owned = Owned({id(tensor): index for index, tensor in enumerate(tensors)})
        for index, tensor in enumerate(tensors):
            memory = memory_of(tensor)
            if memory is not None:
                owned.by_storage.setdefault(memory.storage, []).append((index, memory))
        return owned


def kind_of(tensor: torch.Tensor) -> Hashable:
    """Return the properties of a tensor except its elements and its place in memory.

    The offset in its storage is left out: batches are slices of one tensor, and kernels do not depend on the offset.
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
    """Return the memory of a tensor; None if it has no storage of its own (a sparse one)."""
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
    """Return the identifier of a tensor's allocation; None for a tensor without one."""
    try:
        return tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError, ValueError):  # ValueError: a lazy module's, before its first batch
        return None


def sharing_of(tensors: Iterable[torch.Tensor], owned: Owned) -> tuple[Hashable, ...]:
    """Return for each tensor its relations to the module's own tensors and to earlier tensors.

    An own tensor has ("own", number), an earlier one ("again", place), an independent one None. A tensor in a shared
    storage has a tuple with an entry for each other tensor in it, which says whether they overlap.
    """
    relations: list[Hashable] = []
    places: dict[int, int] = {}
    storages: dict[int, list[int]] = {}
    given: list[torch.Tensor] = []
    for place, tensor in enumerate(tensors):
        given.append(tensor)
        first = places.setdefault(id(tensor), place)
        own = owned.index_of.get(id(tensor))
        if own is not None:
            relations.append(("own", own))
        elif first != place:
            relations.append(("again", first))
        else:
            storage = storage_of(tensor)
            before = storages.setdefault(storage, []) if storage is not None else []
            is_shared = bool(before) or storage in owned.by_storage
            relations.append(_overlaps(tensor, given, before, owned) if is_shared else None)
            before.append(place)
    return tuple(relations)


def _overlaps(tensor: torch.Tensor, given: list[torch.Tensor], before: list[int], owned: Owned) -> Hashable:
    """Return the tensors in the same storage, and whether they overlap."""
    memory = memory_of(tensor)
    if memory is None:
        return None
    relations = [("own", index, memory.overlaps(other)) for index, other in owned.by_storage.get(memory.storage, ())]
    for place in before:
        other = memory_of(given[place])
        relations.append(("given", place, other is not None and memory.overlaps(other)))
    return tuple(relations)


def sharing_among(tensors: Sequence[torch.Tensor]) -> Hashable:
    """Return the groups of a module's own tensors that share a storage, with their bytes in it."""
    by_storage = Owned.of(tensors).by_storage
    return tuple(
        tuple((index, memory.start, memory.stop) for index, memory in members)
        for members in by_storage.values()
        if len(members) > 1
    )
