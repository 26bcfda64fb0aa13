"""Make the operands of a captured call: fake ones, and real ones to run it with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from ....passes.calls import plain_number
from ...errors import CaptureError
from .operand_values import Fitting

_TILE_ELEMENTS = 1 << 18


def value_of(node: fx.Node) -> Any:
    """Return the value of a node: fake tensors, a number, or None for a call that returns nothing.

    Raises `CaptureError` for a node that was captured without its value.
    """
    if "val" in node.meta:
        return node.meta["val"]
    if node.op == "get_attr" and node.graph.owning_module is not None:
        return functools.reduce(getattr, str(node.target).split("."), node.graph.owning_module)
    if node.op == "call_function" and not node.users:
        return None
    raise CaptureError(f"node {node.name!r} of the captured graph has no value; capture it with fake tensors")


def fake_operands(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the call's arguments with every node replaced by its fake value."""
    return _mapped(node, lambda tensor: tensor)


def tensor_operands(node: fx.Node) -> list[torch.Tensor]:
    """Return the fake tensors that the call reads, each once."""
    nodes = dict.fromkeys(node.all_input_nodes)
    return [tensor for node_read in nodes for tensor in tensors_in(value_of(node_read))]


@dataclass
class OperandMaker:
    """Makes real operands for calls on one device."""

    device: torch.device
    _tiles: dict[tuple[torch.dtype, torch.device], torch.Tensor] = field(default_factory=dict)

    def make(
        self, node: fx.Node, *, filled: bool = True, fitting: Fitting | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make tensors of the same sizes, strides and dtypes to run the call with.

        filled: whether to set values; otherwise memory is uninitialized. Floats are between 0.05 and 0.95, which
            nearly every kernel accepts, from a separate generator and the same each time. Integers are 0, a valid
            index nearly everywhere; booleans are True.
        fitting: one of `fittings_of(node)`, which then corrects operands that need other values.

        Operands and device arguments move to `device`, unless the call mixes it with tensors of the CPU.
        """
        moves = self.device.type not in {tensor.device.type for tensor in tensor_operands(node)}
        made: dict[int, torch.Tensor] = {}

        def make(fake: torch.Tensor) -> torch.Tensor:
            if id(fake) not in made:
                device = self.device if moves or fake.device.type != "cpu" else fake.device
                real = _empty(fake, device)
                if filled:
                    self._fill(real)
                made[id(fake)] = lazily_changed(real, fake)
            return made[id(fake)]

        positional, named = _mapped(node, make, self.device if moves else None)
        if filled and fitting is not None:
            fitting(positional, named, value_of(node))
        return positional, named

    def _fill(self, tensor: torch.Tensor) -> None:
        """Fill the memory under a tensor by copying one small tile of values, at the speed of memory."""
        if tensor.numel() == 0:
            return
        elements = extent_bytes(tensor) // tensor.element_size()
        memory = torch.as_strided(tensor, (elements,), (1,))
        if tensor.dtype == torch.bool:
            memory.fill_(True)
        elif tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            whole = elements - elements % _TILE_ELEMENTS
            tile = self._tile(tensor.dtype, tensor.device)
            memory[:whole].view(-1, _TILE_ELEMENTS).copy_(tile)
            memory[whole:].copy_(tile[: elements - whole])
        else:
            memory.zero_()

    def _tile(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        if (dtype, device) not in self._tiles:
            generator = torch.Generator("cpu").manual_seed(0)
            values = torch.rand(_TILE_ELEMENTS, generator=generator, dtype=torch.float32, device="cpu")
            self._tiles[dtype, device] = values.mul_(0.9).add_(0.05).to(device=device, dtype=dtype)
        return self._tiles[dtype, device]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in a value that is a tensor, or a list or tuple of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def extent_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes from a tensor's first to its last element in memory; an expanded dimension counts once."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((int(size) - 1) * int(stride) for size, stride in steps)) * tensor.element_size()


def lazily_changed(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a view of a tensor that is lazily conjugated and negated if `like` is."""
    if like.is_conj():
        tensor = torch.ops.aten._conj.default(tensor)
    return torch.ops.aten._neg_view.default(tensor) if like.is_neg() else tensor


def _mapped(
    node: fx.Node, make: Callable[[torch.Tensor], torch.Tensor], device: torch.device | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def convert(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            argument = value_of(argument)
            if isinstance(argument, (list, tuple)):
                return type(argument)(convert(item) for item in argument)
        if isinstance(argument, torch.Tensor):
            return make(argument)
        if isinstance(argument, torch.device) and device is not None:
            return device
        return plain_number(argument)

    return tuple(map_aggregate(node.args, convert)), dict(map_aggregate(node.kwargs, convert))


def _empty(fake: torch.Tensor, device: torch.device) -> torch.Tensor:
    sizes, strides = [int(size) for size in fake.shape], [int(stride) for stride in fake.stride()]
    return torch.empty_strided(sizes, strides, dtype=fake.dtype, device=device)
