"""The key of a kind of call: all that a captured step depends on, as far as it can be told before capture."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields

from .autocast import autocast_state
from .backend_state import backend_values
from .identity import Interned


@dataclass(frozen=True)
class CallKey:
    """Calls with equal keys may be served by one captured step, if its settings and guard hold too.

    arguments: the structure of the arguments and all in it that is no tensor. tensors: of each tensor among them all
    but its numbers (`tensor_kinds.kind_of`). sharing: which of them are, or share memory with, each other or the
    module's own tensors. module: classes, modes, hooks and the module's own tensors (`ModuleState.key`). process:
    autocast, dtypes, threads and the switches of backends. outputs: the names of the outputs that are returned, None
    for all.
    """

    arguments: Hashable
    tensors: tuple[Hashable, ...]
    sharing: tuple[Hashable, ...]
    module: Interned
    process: Interned
    outputs: tuple[str, ...] | None = None
    forward: Hashable = None

    def __hash__(self) -> int:
        """Worked out once: a call looks itself up in several places."""
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash(tuple([getattr(self, one.name) for one in fields(self)]))
            object.__setattr__(self, "_hash", known)
        return known

    def differing(self, other: CallKey) -> list[str]:
        """The names of the parts in which another key differs."""
        return [one.name for one in fields(self) if getattr(self, one.name) != getattr(other, one.name)]


def process_state(device_type: str) -> tuple[Hashable, ...]:
    """What kernels and casts depend on outside of the module: autocast, and the state of torch's backends.

    It comes as values without names; `CallKey.process` holds it.
    """
    return autocast_state(device_type), *backend_values(device_type)
