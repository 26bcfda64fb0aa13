"""Find the modules that hold the tensors from which a step starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from ....passes.sources import Source
from .pytree import Structure


class Owners:
    """The places of a module's parameters and buffers, so that each call finds the present tensors quickly.

    modules: all modules, by name.
    device_type: the device type of the first tensor; meta counts as CPU.
    uninitialized: names of tensors without a shape yet, in lazy modules that have not run.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self._parameters: list[tuple[Source, torch.nn.Module, str]] = []
        self._buffers: list[tuple[Source, torch.nn.Module, str]] = []
        seen: set[int] = set()
        for prefix, module in self.modules.items():
            for kind, held, owned in (
                ("parameter", module._parameters, self._parameters),
                ("buffer", module._buffers, self._buffers),
            ):
                for name, tensor in held.items():
                    if tensor is not None and id(tensor) not in seen:
                        seen.add(id(tensor))
                        qualified = f"{prefix}.{name}" if prefix else name
                        owned.append((Source(kind, qualified, len(owned)), module, name))  # pyright: ignore
        self.uninitialized = tuple(
            source.name for source, module, name in (*self._parameters, *self._buffers) if _has_no_shape(module, name)
        )
        first = next(iter([*self.parameters(), *self.buffers()]), torch.empty(0))
        self.device_type = "cpu" if first.device.type == "meta" else first.device.type

    def parameters(self) -> list[torch.Tensor]:
        """Return the present parameters, tied ones once."""
        return [module._parameters[name] for _, module, name in self._parameters]  # pyright: ignore[reportReturnType]

    def buffers(self) -> list[torch.Tensor]:
        """Return the present buffers, tied ones once."""
        return [module._buffers[name] for _, module, name in self._buffers]  # pyright: ignore[reportReturnType]

    def grads_present(self, inputs: Sequence[torch.Tensor]) -> tuple[bool, ...]:
        """Return for each parameter, and each input that is a trained leaf, whether it has a `.grad`."""
        leaves = (*self.parameters(), *(t for t in inputs if t.requires_grad and t.is_leaf))
        return tuple([leaf.grad is not None for leaf in leaves])

    def sources(self, inputs: Sequence[torch.Tensor], structure: Structure) -> dict[Source, torch.Tensor]:
        """Return all tensors from which a step starts, by source, without constants."""
        tensors = {source: module._parameters[name] for source, module, name in self._parameters}
        tensors |= {source: module._buffers[name] for source, module, name in self._buffers}
        seen: set[int] = {id(tensor) for tensor in tensors.values()}
        count = 0
        for name, tensor in zip(structure.names, inputs, strict=True):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensors[Source("input", name, count)] = tensor
                count += 1
        return tensors  # pyright: ignore[reportReturnType]


def _has_no_shape(module: torch.nn.Module, name: str) -> bool:
    tensor = module._parameters.get(name, module._buffers.get(name))
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))
