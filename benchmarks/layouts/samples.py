"""Sample calls of all operations that torch tests itself with, their tensors in several layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sample:
    """A call of an operation.

    arguments: input, positional and named ones, flattened.
    spec: how they were nested.
    """

    name: str
    number: int
    operation: Callable[..., Any]
    arguments: tuple[Any, ...]
    spec: Any

    @property
    def tensors(self) -> list[Tensor]:
        """The call's tensors, in order."""
        return [argument for argument in self.arguments if isinstance(argument, Tensor)]

    def changed(self, change: Change) -> Sample:
        """Return the same call on other tensors."""
        arguments = tuple(change(argument) if isinstance(argument, Tensor) else argument for argument in self.arguments)
        return Sample(self.name, self.number, self.operation, arguments, self.spec)

    def __call__(self, *tensors: Tensor) -> Any:
        """Call the operation with other tensors in place of its own."""
        given = iter(tensors)
        arguments = [next(given) if isinstance(argument, Tensor) else argument for argument in self.arguments]
        first, positional, named = tree_unflatten(arguments, self.spec)
        return self.operation(first, *positional, **named)


def samples(dtype: torch.dtype, most: int, names: Sequence[str] = (), part: slice = slice(None)) -> Iterator[Sample]:
    """Yield up to `most` calls of each operation that takes a dtype on a CPU, spread over all samples of torch.

    names: the operations to take, all by default.
    part: a slice of the list of all operations.
    """
    for entry in _database()[part]:
        name = f"{entry.name}.{entry.variant_test_name}" if entry.variant_test_name else entry.name
        if (names and name not in names) or not entry.supports_dtype(dtype, "cpu"):
            continue
        differentiable = entry.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
        calls = list(entry.sample_inputs("cpu", dtype, requires_grad=differentiable))
        for number in range(0, len(calls), max(1, len(calls) // most))[:most]:
            call = calls[number]
            flat, spec = tree_flatten((call.input, call.args, call.kwargs))
            yield Sample(name, number, entry, tuple(flat), spec)


def _database() -> list[Any]:
    try:
        from torch.testing._internal import common_methods_invocations as operations
    except ImportError as error:
        raise SystemExit(f"torch's samples of operations need {error.name}: pip install {error.name}") from error
    # Some set the generator's state around each call, which no module does; this calls them directly.
    operations.wrapper_set_seed = lambda operation, *args, **kwargs: operation(*args, **kwargs)
    return operations.op_db


def _with_gaps(tensor: Tensor) -> Tensor:
    wide = tensor.new_zeros((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1))
    view = wide[..., 1::2][..., : tensor.shape[-1]]
    return view.copy_(tensor)


def _turned(tensor: Tensor) -> Tensor:
    order = list(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _odd_ones(tensor: Tensor) -> Tensor:
    strides = [7 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides)


LAYOUTS: dict[str, tuple[Callable[[Tensor], bool], Change]] = {
    "contiguous": (lambda tensor: True, lambda tensor: tensor.contiguous()),
    "turned": (lambda tensor: tensor.dim() > 1, _turned),
    "channels last": (lambda tensor: tensor.dim() > 2, _channels_last),
    "expanded": (lambda tensor: tensor.dim() > 0 and tensor.shape[0] > 1, lambda tensor: tensor[:1].expand_as(tensor)),
    "with gaps": (lambda tensor: tensor.dim() > 0, _with_gaps),
    "odd ones": (lambda tensor: 1 in tensor.shape and tensor.is_contiguous(), _odd_ones),
    "one channel": (lambda tensor: tensor.dim() > 2, lambda tensor: tensor[:, :1]),
    "one pixel": (lambda tensor: tensor.dim() > 2, lambda tensor: tensor[..., :1, :1]),
    "conjugated": (lambda tensor: tensor.is_complex(), lambda tensor: tensor.conj().resolve_conj().conj()),
}
"""For each name: which tensors can have the layout, and how to change them."""


def laid_out(sample: Sample, layout: str) -> Sample | None:
    """Return a sample with its tensors in a layout, as far as they can be; None if none can."""
    can, change = LAYOUTS[layout]

    def changed(tensor: Tensor) -> Tensor:
        plain = tensor.detach()
        return (change(plain) if can(plain) else plain).detach().requires_grad_(tensor.requires_grad)

    strided = [tensor for tensor in sample.tensors if tensor.layout == torch.strided and not tensor.is_quantized]
    if len(strided) < len(sample.tensors) or not any(can(tensor.detach()) for tensor in strided):
        return None
    return sample.changed(changed)
