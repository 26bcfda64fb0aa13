"""Finds the settings of modules that forward reads (a probability, a flag), so that changing one is noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch

_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)
_BY_IDENTITY = (FunctionType, BuiltinFunctionType, type)


@dataclass(frozen=True)
class Settings:
    """Plain attributes of modules, as (name of the module, name of the attribute, value)."""

    read: tuple[tuple[str, str, Any], ...]

    def hold(self, modules: Mapping[str, torch.nn.Module]) -> bool:
        """Whether they are the same in these modules, by name. Asked at each call: most are the very same objects."""
        for name, attribute, value in self.read:
            module = modules.get(name)
            if module is None:
                return False
            held = module.__dict__.get(attribute, _Other)
            if held is not value and not _same(_value(held), value):
                return False
        return True


def settings_of(model: torch.nn.Module, read: set[tuple[str, str]], constants: Sequence[torch.Tensor] = ()) -> Settings:
    """The plain ones among attributes that were read, with their present values; and which tensors stood in them.

    constants: the held tensors that the captured step uses: only their being exchanged matters.
    """
    used = {id(tensor) for tensor in constants}
    modules = {name: vars(module) for name, module in model.named_modules()}
    told = []
    for module, attribute in sorted(read):
        held = modules[module].get(attribute, _Other)
        value = _value(held)
        if value is not _Other and (not isinstance(held, torch.Tensor) or id(held) in used):
            told.append((module, attribute, value))
    return Settings(tuple(told))


class _Other:
    """Stands for a value that is not plain."""


def _value(held: Any) -> Any:
    """What an attribute is compared by: a tensor by being the same one (the captured step keeps it alive)."""
    return f"tensor {id(held)}" if isinstance(held, torch.Tensor) else _plain(held)


def _plain(value: Any) -> Any:
    """A value that stays what it is, a sequence of such as its text, `_Other` for anything else."""
    if isinstance(value, (*_PLAIN, *_BY_IDENTITY)):
        return value
    if isinstance(value, dict):
        return _Other if any(_plain(part) is _Other for part in value.values()) else repr(value)
    if isinstance(value, (list, tuple)):
        return _Other if any(_plain(part) is _Other for part in value) else repr(value)
    return _Other


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal and of one type: True == 1 == 1.0."""
    return one is other or (type(one) is type(other) and one == other)
