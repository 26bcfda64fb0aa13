"""Where a module keeps the tensors that a step starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ....passes.sources import Source
from .pytree import Structure


class Owners:
    """Where a module's parameters and buffers are, so that each call finds the present ones quickly.

    modules: by name. device_type: where the first of them lies; meta counts as CPU. uninitialized: names of what has no
    shape yet, in lazy modules that have not run.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self._parameters: list[tuple[Source, torch.nn.Module, str]] = []
        self._buffers: list[tuple[Source, torch.nn.Module, str]] = []
        seen: set[int] = set()
        for prefix, module in self.modules.items():
            for kind, held, found in (
                ("parameter", module._parameters, self._parameters),
                ("buffer", module._buffers, self._buffers),
            ):
                for name, tensor in held.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        qualified = f"{prefix}.{name}" if prefix else name
                        found.append((Source(kind, qualified, len(found)), module, name))
        self.uninitialized = tuple(
            source.name for source, module, name in (*self._parameters, *self._buffers) if _has_no_shape(module, name)
        )
        first = next(iter([*self.parameters(), *self.buffers()]), torch.empty(0))
        self.device_type = "cpu" if first.device.type == "meta" else first.device.type

    def parameters(self) -> list[torch.Tensor]:
        """The present parameters, tied ones once."""
        return [module._parameters[name] for _, module, name in self._parameters]  # pyright: ignore[reportReturnType]

    def buffers(self) -> list[torch.Tensor]:
        """The present buffers, tied ones once."""
        return [module._buffers[name] for _, module, name in self._buffers]  # pyright: ignore[reportReturnType]

    def grads_present(self, inputs: Sequence[torch.Tensor]) -> tuple[bool, ...]:
        """Which of the parameters, and of the inputs that are trained, have a `.grad`."""
        leaves = (*self.parameters(), *(t for t in inputs if t.requires_grad and t.is_leaf))
        return tuple([leaf.grad is not None for leaf in leaves])

    def sources(self, inputs: Sequence[torch.Tensor], structure: Structure) -> dict[Source, torch.Tensor]:
        """All tensors that a step starts from, by source; constants are not among them."""
        told = {source: module._parameters[name] for source, module, name in self._parameters}
        told |= {source: module._buffers[name] for source, module, name in self._buffers}
        seen: set[int] = {id(tensor) for tensor in told.values()}
        count = 0
        for name, tensor in zip(structure.names, inputs, strict=True):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                told[Source("input", name, count)] = tensor
                count += 1
        return told  # pyright: ignore[reportReturnType]


def _has_no_shape(module: torch.nn.Module, name: str) -> bool:
    tensor = module._parameters.get(name, module._buffers.get(name))
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))
