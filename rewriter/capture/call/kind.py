"""Identify the kind of a call: a plan is made for one kind of call and serves all calls like it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from ..boundary.pytree import Structure, flatten_call
from ..boundary.refused_parts import refuse_tensors, refuse_uninitialized
from .caches import bind
from .identity import Interned
from .key import CallKey, process_state
from .module_state import ModuleState
from .tensor_kinds import kind_of, sharing_of


@dataclass(frozen=True)
class Call:
    """The tensors of one call, the key of its kind, and the state of the module tree at that time."""

    inputs: tuple[torch.Tensor, ...]
    structure: Structure
    key: CallKey
    state: ModuleState


class Describer:
    """Describes the calls of one module. Slow parts are recomputed only after changes."""

    def __init__(self) -> None:
        self._state: ModuleState | None = None
        self._process: Interned | None = None
        self._last: tuple[tuple[Hashable, ...], CallKey] | None = None  # hashed already

    def state_of(self, model: torch.nn.Module) -> ModuleState:
        """Return the present state of the module tree."""
        if self._state is None or not self._state.is_current():
            self._state = ModuleState(model)
        return self._state

    def describe(
        self,
        model: torch.nn.Module,
        args: tuple,
        kwargs: dict[str, Any],
        outputs: tuple[str, ...] | None = None,
        forward: Hashable = None,
    ) -> Call:
        """Describe a call that returns these outputs.

        forward: identifies a forward that was set on the rewritten module.
        Raises StructureError for arguments that cannot be traversed, Unsettled for a module without shapes yet.
        """
        state = self.state_of(model)
        refuse_uninitialized(state.owners)
        kwargs, _ = bind(model, args, kwargs)
        inputs, structure = flatten_call(args, kwargs)
        if any(tensor.layout is not torch.strided or tensor.is_nested for tensor in inputs):
            refuse_tensors((f"argument {name}", tensor) for name, tensor in zip(structure.names, inputs, strict=True))
        tensors, sharing = tuple(map(kind_of, inputs)), sharing_of(inputs, state.owned)
        parts = structure.key, tensors, sharing, state.key, self.process(state), outputs, forward
        last = self._last  # another thread may describe a call of its own meanwhile
        if last is None or last[0] != parts:
            last = self._last = parts, CallKey(*parts)
        return Call(tuple(inputs), structure, last[1], state)

    def process(self, state: ModuleState) -> Interned:
        """Return the state outside of the module on which the call depends."""
        content = process_state(state.owners.device_type)
        if self._process is None or self._process.content != content:
            self._process = Interned(content)
        return self._process


def batch_text(call: Call) -> str:
    """Return the tensors of a call in words: `input_ids 8 × 256, labels 8 × 256`."""
    descriptions = []
    for name, tensor in zip(call.structure.names, call.inputs, strict=True):
        place, _, rest = name.partition(".")
        size = " × ".join(map(str, tensor.shape)) or "one number"
        descriptions.append(f"{rest if place == '1' else f'argument {rest}'} {size}")
    more = f" and {len(descriptions) - 3} more" if len(descriptions) > 3 else ""
    return (", ".join(descriptions[:3]) or "no tensors") + more
