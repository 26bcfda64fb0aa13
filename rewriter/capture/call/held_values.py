"""Make keys of the attributes of modules: plain values, collections and objects of them, and tensors inside."""

from __future__ import annotations

import enum
import functools
from collections import deque
from collections.abc import Collection, Hashable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy
import torch

from .identity import Same
from .tensor_kinds import kind_of

_BY_VALUE = (bool, int, str, bytes, type(None), range, torch.dtype, torch.device, torch.memory_format, torch.layout)
_BY_TEXT = (float, complex, numpy.generic)  # by their text nan is nan, and -0.0 is not 0.0
_BY_IDENTITY = (FunctionType, BuiltinFunctionType, type, enum.Enum)
# Attributes of every module, which are part of the key of the module tree.
_OF_EVERY_MODULE = frozenset(dir(torch.nn.Module()))
_MOST_PARTS = 20_000  # parts of collections and objects; further ones are compared by identity
# The depth of objects within objects: configurations contain configurations; deeper objects are a trainer's counters.
_MOST_DEEP = 3


class ABSENT:
    """A marker for an attribute that an instance does not have."""


class HeldValues:
    """Keys of the values of attributes.

    views: live views of the visited collections and objects, for later comparison by identity.
    sees_all: whether `views` shows every change of the visited objects.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module], used: Collection[int]) -> None:
        self.views: list[Collection[Any]] = []
        self.sees_all = True
        self._names = {id(module): name for name, module in modules.items()}
        self._used = used
        self._parts_left = _MOST_PARTS
        self._depth = 0
        self._known: dict[int, tuple[Any, Hashable]] = {}

    def of(self, module: torch.nn.Module, attribute: str) -> Hashable | None:
        """Return the key of an attribute; None for attributes of every module, parameters, buffers and submodules."""
        if attribute in _OF_EVERY_MODULE:
            return None
        held = vars(module).get(attribute, ABSENT)
        if held is not ABSENT:
            return "own", self._look(held)
        if any(attribute in places for places in (module._parameters, module._buffers, module._modules)):
            return None
        held = getattr(type(module), attribute, ABSENT)
        return "class", self._look(held) if is_plain(held) else "no plain value"

    def _look(self, held: Any) -> Hashable:
        if isinstance(held, _BY_VALUE):
            return type(held), held
        if isinstance(held, _BY_TEXT):
            return type(held), repr(held)
        if isinstance(held, torch.Tensor):
            return Same(held) if id(held) in self._used else ("tensor", kind_of(held))
        if id(held) in self._names:
            return "module", self._names[id(held)]
        if isinstance(held, _BY_IDENTITY) or self._parts_left <= 0:
            return Same(held)
        known = self._known.get(id(held))
        if known is None:
            # During the visit this key stands for the object, in case it contains itself.
            self._known[id(held)] = held, ("within", len(self._known))
            known = self._known[id(held)] = held, self._look_into(held)
        return known[1]

    def _look_into(self, held: Any) -> Hashable:
        self._parts_left -= 1
        if isinstance(held, MethodType):
            return type(held), Same(held.__func__), self._look(held.__self__)
        if isinstance(held, functools.partial):
            return type(held), *map(self._look, (held.func, held.args, held.keywords))
        if isinstance(held, torch.nn.Module):
            return self._module(held)
        parts: Hashable = None
        if isinstance(held, (list, tuple, deque)):
            parts = tuple(map(self._look, held))
        elif isinstance(held, dict):
            parts = tuple((self._look(key), self._look(value)) for key, value in held.items())
        elif isinstance(held, (set, frozenset)):
            parts = frozenset(map(self._look, held))
        elif self._depth >= _MOST_DEEP or not (hasattr(held, "__dict__") or _slots(held)):
            return Same(held)
        self._watch(held)
        self._depth += 1
        # Caches are left out of a step whatever the configuration says.
        own = tuple((name, self._look(value)) for name, value in _attributes(held) if name != "use_cache")
        self._depth -= 1
        return type(held), parts, own

    def _watch(self, held: Any) -> None:
        """Keep live views of the content of a collection or an object."""
        if isinstance(held, dict):
            self.views += [held.keys(), held.values()]
        elif isinstance(held, (list, deque, set)):
            self.views.append(held)
        own = getattr(held, "__dict__", None)
        if own is not None:
            self.views += [own.keys(), own.values()]
        self.sees_all &= not _slots(held)  # slots have no live view
        self._parts_left -= len(held if isinstance(held, Collection) else own or ())

    def _module(self, module: torch.nn.Module) -> Hashable:
        """Return the key of a module that is not registered: its identity, its modes, and its tensors."""
        self.sees_all = False
        parts = list(module.modules())
        tensors = [tensor for part in parts for held in (part._parameters, part._buffers) for tensor in held.values()]
        return Same(module), tuple((Same(part), part.training) for part in parts), tuple(map(self._look, tensors))


def is_plain(held: Any) -> bool:
    """Return whether a value is plain, or ABSENT, rather than a method or a property."""
    return held is ABSENT or isinstance(held, (*_BY_VALUE, *_BY_TEXT))


def _slots(held: Any) -> list[str]:
    """Return the names of the slots of a class."""
    slots_by_class = [getattr(cls, "__slots__", ()) for cls in type(held).__mro__]
    names = [name for slots in slots_by_class for name in ([slots] if isinstance(slots, str) else slots)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _attributes(held: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(held, "__dict__", {}).items()
    for name in _slots(held):
        yield name, getattr(held, name, ABSENT)
