"""Make a tensor of a list that holds tensors, as `torch.tensor` does, without looking at their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

_NUMBERS = (bool, int, float, complex)


def made_of_list(func: Any, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the tensor made of nested lists of numbers and one-element tensors; None for any other call or list.

    It serves `torch.tensor`, `as_tensor`, `asarray` and a tensor's `new_tensor`.
    Raises ValueError and TypeError as eager does: for tensors of several elements, for lists of unequal lengths, and
    for floating-point tensors if an integer dtype is requested.
    """
    if func not in _MAKERS:
        return None
    data, dtype, device, requires_grad = _MAKERS[func](*args, **kwargs)
    if not isinstance(data, (list, tuple)):
        return None
    leaves = list(_leaves(data))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    if not tensors or not all(isinstance(leaf, (*_NUMBERS, torch.Tensor)) for leaf in leaves):
        return None
    if any(tensor.numel() != 1 for tensor in tensors):
        raise ValueError("only one element tensors can be converted to Python scalars")
    shape = _shape(data)
    dtype = dtype if dtype is not None else _common_dtype(leaves)
    made = torch.cat(list(_pieces(leaves, dtype, device))).reshape(shape)
    return made.requires_grad_() if requires_grad else made


def _plain(data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any) -> tuple:
    return data, dtype, _device(device), requires_grad


def _array(obj: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any) -> tuple:
    return obj, dtype, _device(device), requires_grad


def _alike(
    like: torch.Tensor, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **_: Any
) -> tuple:
    return data, dtype or like.dtype, like.device if device is None else _device(device), requires_grad


def _device(device: Any) -> torch.device:
    return torch.get_default_device() if device is None else torch.empty(0, device=device).device


_MAKERS: dict[Any, Callable[..., tuple]] = {
    torch.tensor: _plain,
    torch.as_tensor: _plain,
    torch.asarray: _array,
    torch.Tensor.new_tensor: _alike,
}


def _leaves(data: Any) -> Iterator[Any]:
    for part in data:
        if isinstance(part, (list, tuple, range)):
            yield from _leaves(part)
        else:
            yield part


def _shape(data: Any) -> tuple[int, ...]:
    if not isinstance(data, (list, tuple, range)):
        return ()
    shapes = [_shape(part) for part in data]
    for shape in shapes:
        if shape != shapes[0]:
            raise ValueError(f"expected sequences of equal lengths, got shapes {shapes[0]} and {shape}")
    return (len(data), *(shapes[0] if shapes else ()))


def _common_dtype(leaves: list[Any]) -> torch.dtype:
    """Return the dtype to which all numbers and tensors promote, each with equal weight."""
    real = torch.get_default_dtype()
    own = {bool: torch.bool, int: torch.int64, float: real, complex: real.to_complex()}
    dtypes = [leaf.dtype if isinstance(leaf, torch.Tensor) else own[type(leaf)] for leaf in leaves]
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    return common


def _pieces(leaves: list[Any], dtype: torch.dtype, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield consecutive one-dimensional tensors: one for each run of numbers and one for each tensor."""
    numbers: list[Any] = []
    for leaf in leaves:
        number = _element(leaf, dtype) if isinstance(leaf, torch.Tensor) else leaf
        if not isinstance(number, torch.Tensor):
            numbers.append(number)
            continue
        if numbers:
            yield torch.tensor(numbers, dtype=dtype, device=device)
            numbers = []
        yield number.to(device)
    if numbers:
        yield torch.tensor(numbers, dtype=dtype, device=device)


def _element(tensor: torch.Tensor, dtype: torch.dtype) -> Any:
    """Return the element as a tensor of a dtype, or as a number, whose value is then read, if it may not fit."""
    tensor = tensor.detach().reshape(1)
    whole = not (dtype.is_floating_point or dtype.is_complex)
    if whole and (tensor.is_floating_point() or tensor.is_complex()):
        raise TypeError("only integer tensors of a single element can be converted to an index")
    if whole and torch.promote_types(tensor.dtype, dtype) != dtype and dtype != torch.bool:
        return tensor.item()
    if tensor.is_complex() and not dtype.is_complex:
        return tensor.item()
    # Eager converts to a Python number first, which has double precision.
    if dtype.is_complex:
        return tensor.to(torch.complex128).to(dtype)
    return tensor.to(dtype) if whole else tensor.to(torch.float64).to(dtype)
