"""The key of a kind of call: everything on which a captured step depends that is known before capture."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields

from .autocast import autocast_state
from .backend_state import backend_values
from .identity import Interned


@dataclass(frozen=True)
class CallKey:
    """The key of a call: one captured step may serve calls with equal keys, if its settings and guard hold too.

    arguments: the structure of the arguments and all values in it that are not tensors.
    tensors: the properties of each tensor except its elements (`tensor_kinds.kind_of`).
    sharing: which of the tensors are the same, or share memory, with each other or with the module's own tensors.
    module: classes, modes, hooks and the module's own tensors (`ModuleState.key`).
    process: autocast, dtypes, threads and the switches of backends.
    outputs: the names of the outputs that are returned, None for all.
    forward: the identity of a forward that was set on the rewritten module.
    """

    arguments: Hashable
    tensors: tuple[Hashable, ...]
    sharing: tuple[Hashable, ...]
    module: Interned
    process: Interned
    outputs: tuple[str, ...] | None = None
    forward: Hashable = None

    def __hash__(self) -> int:
        """Compute the hash once, since a call is looked up in several places."""
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash(tuple([getattr(self, part.name) for part in fields(self)]))
            object.__setattr__(self, "_hash", known)
        return known

    def differing(self, other: CallKey) -> list[str]:
        """Return the names of the parts in which another key differs."""
        return [part.name for part in fields(self) if getattr(self, part.name) != getattr(other, part.name)]


def process_state(device_type: str) -> tuple[Hashable, ...]:
    """Return the state outside of the module on which kernels and casts depend: autocast and torch's backends.

    The result has values without names; `CallKey.process` holds it.
    """
    return autocast_state(device_type), *backend_values(device_type)
