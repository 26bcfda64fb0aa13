"""Find views that equal an existing tensor: a matrix transposed twice, a shape changed and changed back.

Autograd's formulas contain many of them. Each would be a call, which for a small tensor takes as long as the kernel.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import fx

from ...passes.step_graph import StepGraph, storage_key

# The second one hides from autograd that it is a view, which does not matter to generated code below autograd.
_RESHAPES = ("aten.view.default", "aten._unsafe_view.default")


class EqualViews:
    """Views of a step that are the same elements in the same layout."""

    def __init__(self, step: StepGraph) -> None:
        self._step = step
        self._places: dict[fx.Node, _Place | None] = {}

    def of(self, view: fx.Node, named: Collection[fx.Node]) -> fx.Node | None:
        """Return a node that can be read instead of a view: one from which it is made, or one that has a name."""
        place = self._place(view)
        if place is None:
            return None
        before = [node for node in self._made_of(view) if self._place(node) == place]
        if before:
            return before[-1]
        return next((node for node in named if self._place(node) == place), None)

    def reshaped(self, view: fx.Node, named: Collection[fx.Node]) -> fx.Node | None:
        """Return the node whose `aten.view` equals a view that only changes the shape; None for other views.

        Intermediate shapes that nothing else needs are skipped.
        """
        if str(view.target) not in _RESHAPES:
            return None
        source = self._first(view)
        while source is not None and source not in named and str(source.target) in _RESHAPES:
            before = self._first(source)
            if before is None or not before.meta["val"].is_contiguous():
                break
            source = before
        return source

    def _made_of(self, view: fx.Node) -> list[fx.Node]:
        """Return the tensors in the same storage from which a view is made, the nearest first."""
        chain: list[fx.Node] = []
        source = self._first(view)
        while source is not None:
            chain.append(source)
            source = self._first(source)
        return chain

    def _first(self, node: fx.Node) -> fx.Node | None:
        """Return the base of a view, or the value that was overwritten, if it is a tensor in the same storage."""
        storage = self._step.storage_of.get(node)
        if storage is None or node is self._step.storages[storage].base:
            return None
        source = self._step.overwrites.get(node) or next(iter(node.args), None)
        is_same = isinstance(source, fx.Node) and self._step.storage_of.get(source) == storage
        return source if is_same and self._place(source) is not None else None  # pyright: ignore

    def _place(self, node: fx.Node) -> _Place | None:
        """Return the place of a tensor; None if it is not strided."""
        if node not in self._places:
            value = node.meta.get("val")
            is_strided = isinstance(value, torch.Tensor) and value.layout is torch.strided
            self._places[node] = self._moved(node, _Place.of(value)) if is_strided else None  # pyright: ignore
        return self._places[node]

    def _moved(self, node: fx.Node, place: _Place) -> _Place:
        """Return the place in the overwritten storage of a value, or of a view of it, that was written over another."""
        written = node
        while written not in self._step.overwrites:
            source = self._first(written)
            if source is None or _Place.of(source.meta["val"]).storage != place.storage:
                return place
            written = source
        before, own = self._place(self._step.overwrites[written]), _Place.of(written.meta["val"])
        if before is None or replace(own, storage=before.storage, offset=before.offset) != before:
            return place
        return replace(place, storage=before.storage, offset=place.offset - own.offset + before.offset)


@dataclass(frozen=True)
class _Place:
    """A place in memory, equal for tensors with the same elements in the same layout.

    storage: identifies the storage during capture.
    offset: elements from its start.
    flipped: whether it is lazily conjugated and negated.
    """

    storage: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    flipped: tuple[bool, bool]

    @staticmethod
    def of(value: torch.Tensor) -> _Place:
        """Return the place of a tensor."""
        flipped = value.is_conj(), value.is_neg()
        place = storage_key(value), int(value.storage_offset())
        return _Place(*place, tuple(value.shape), tuple(value.stride()), value.dtype, flipped)
