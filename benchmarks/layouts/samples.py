"""Sample calls of all operations that torch tests itself with, their tensors laid out in several ways."""

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
    """A call of an operation. arguments: input, positional and named ones, flattened; spec: how they were nested."""

    name: str
    number: int
    operation: Callable[..., Any]
    arguments: tuple[Any, ...]
    spec: Any

    @property
    def tensors(self) -> list[Tensor]:
        """Its tensors, in order."""
        return [argument for argument in self.arguments if isinstance(argument, Tensor)]

    def changed(self, change: Change) -> Sample:
        """The same call on other tensors."""
        arguments = tuple(change(one) if isinstance(one, Tensor) else one for one in self.arguments)
        return Sample(self.name, self.number, self.operation, arguments, self.spec)

    def __call__(self, *tensors: Tensor) -> Any:
        """Calls the operation with other tensors in the place of its own."""
        given = iter(tensors)
        arguments = [next(given) if isinstance(one, Tensor) else one for one in self.arguments]
        first, positional, named = tree_unflatten(arguments, self.spec)
        return self.operation(first, *positional, **named)


def samples(dtype: torch.dtype, most: int, names: Sequence[str] = (), part: slice = slice(None)) -> Iterator[Sample]:
    """Up to `most` calls of each operation that takes a dtype on a CPU, spread over all that torch has.

    names: of which operations, all by default; part: of the list of all.
    """
    for entry in _database()[part]:
        name = f"{entry.name}.{entry.variant_test_name}" if entry.variant_test_name else entry.name
        if (names and name not in names) or not entry.supports_dtype(dtype, "cpu"):
            continue
        able = entry.supports_autograd and (dtype.is_floating_point or dtype.is_complex)
        calls = list(entry.sample_inputs("cpu", dtype, requires_grad=able))
        for number in range(0, len(calls), max(1, len(calls) // most))[:most]:
            one = calls[number]
            flat, spec = tree_flatten((one.input, one.args, one.kwargs))
            yield Sample(name, number, entry, tuple(flat), spec)


def _database() -> list[Any]:
    try:
        from torch.testing._internal import common_methods_invocations as operations
    except ImportError as error:
        raise SystemExit(f"torch's samples of operations need {error.name}: pip install {error.name}") from error
    # Some set the generator's state around each call, which no module does; they are called as they are.
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
    "contiguous": (lambda one: True, lambda one: one.contiguous()),
    "turned": (lambda one: one.dim() > 1, _turned),
    "channels last": (lambda one: one.dim() > 2, _channels_last),
    "expanded": (lambda one: one.dim() > 0 and one.shape[0] > 1, lambda one: one[:1].expand_as(one)),
    "with gaps": (lambda one: one.dim() > 0, _with_gaps),
    "odd ones": (lambda one: 1 in one.shape and one.is_contiguous(), _odd_ones),
    "one channel": (lambda one: one.dim() > 2, lambda one: one[:, :1]),
    "one pixel": (lambda one: one.dim() > 2, lambda one: one[..., :1, :1]),
    "conjugated": (lambda one: one.is_complex(), lambda one: one.conj().resolve_conj().conj()),
}
"""By name: which tensors can be laid out so, and how."""


def laid_out(sample: Sample, layout: str) -> Sample | None:
    """A sample with all tensors laid out in a way, as far as they can be; None if none can."""
    can, change = LAYOUTS[layout]

    def changed(tensor: Tensor) -> Tensor:
        plain = tensor.detach()
        return (change(plain) if can(plain) else plain).detach().requires_grad_(tensor.requires_grad)

    strided = [one for one in sample.tensors if one.layout == torch.strided and not one.is_quantized]
    if len(strided) < len(sample.tensors) or not any(can(one.detach()) for one in strided):
        return None
    return sample.changed(changed)
