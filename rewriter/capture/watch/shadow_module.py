"""A copy of a module's objects over the same tensors, in which capture can run forward without touching the original.

Another thread may run the original meanwhile: it sees neither exchanged parameters nor changed attributes.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import MethodType, SimpleNamespace
from typing import Any

import torch

_DICTS = (dict, OrderedDict, defaultdict)
_MARK = "_lowtide_watched"


def shadow_of(model: torch.nn.Module) -> torch.nn.Module:
    """A module with the same tensors in copies of all module objects, and of the containers that these hold.

    Other objects are shared. Methods bound to a module of the tree are bound to its copy.
    """
    return _Copier().copied(model)


class _Copier:
    """Copies modules and containers, each once."""

    def __init__(self) -> None:
        self.known: dict[int, Any] = {}
        self.alive: list[Any] = []  # what is known by its id must not go

    def copied(self, value: Any) -> Any:
        """The copy of a module, container, bound method or partial; anything else itself."""
        if id(value) in self.known:
            return self.known[id(value)]
        make = self._maker(value)
        return value if make is None else make(value)

    def _maker(self, value: Any) -> Any:
        cls = type(value)
        if isinstance(value, torch.nn.Module):
            return None if isinstance(value, torch.jit.ScriptModule) else self._module
        if cls in _DICTS:
            return self._dict
        if cls in (list, set):
            return self._sequence
        if isinstance(value, tuple):
            return self._tuple
        if cls is SimpleNamespace:
            return self._namespace
        if cls is MethodType:
            return self._method
        if cls is functools.partial:
            return self._partial
        return self._other if isinstance(value, (dict, list, set)) else None

    def _know(self, value: Any, twin: Any) -> Any:
        self.known[id(value)] = twin
        self.alive.append(value)
        return twin

    def _module(self, module: torch.nn.Module) -> torch.nn.Module:
        twin = self._know(module, object.__new__(_watched(type(module))))
        for name, value in list(vars(module).items()):
            twin.__dict__[name] = self.copied(value)
        return twin

    def _dict(self, value: dict) -> dict:
        twin = self._know(value, copy.copy(value))
        twin.clear()
        for key, held in list(value.items()):
            twin[self.copied(key)] = self.copied(held)
        return twin

    def _sequence(self, value: Any) -> Any:
        twin = self._know(value, type(value)())
        (twin.extend if isinstance(twin, list) else twin.update)(self.copied(held) for held in list(value))
        return twin

    def _tuple(self, value: tuple) -> tuple:
        parts = [self.copied(held) for held in value]
        if all(part is held for part, held in zip(parts, value, strict=True)):
            return value
        return self._know(value, type(value)(*parts) if hasattr(value, "_fields") else tuple(parts))

    def _namespace(self, value: SimpleNamespace) -> SimpleNamespace:
        twin = self._know(value, SimpleNamespace())
        twin.__dict__.update({name: self.copied(held) for name, held in vars(value).items()})
        return twin

    def _method(self, value: MethodType) -> MethodType:
        owner = self.copied(value.__self__)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)

    def _partial(self, value: functools.partial) -> functools.partial:
        named = {name: self.copied(held) for name, held in value.keywords.items()}
        return functools.partial(self.copied(value.func), *map(self.copied, value.args), **named)

    def _other(self, value: Any) -> Any:
        # A class of its own may refuse to be copied (a frozen configuration): then nothing changes it either.
        try:
            return self._know(value, copy.copy(value))
        except Exception:
            return value


@dataclass
class Watch:
    """What one thread learns while a copied module runs.

    names: of the modules, by id. running: names of those that run now, innermost last. read: (name of the module,
    name of the attribute) of what was read of them before it was set. written: of what was set.
    """

    names: dict[int, str]
    running: list[str] = field(default_factory=list)
    read: set[tuple[str, str]] = field(default_factory=set)
    written: set[tuple[str, str]] = field(default_factory=set)

    def reads(self, module: Any, attribute: str) -> None:
        """Notes that an attribute is read."""
        name = self.names.get(id(module))
        if name is not None and (name, attribute) not in self.written:
            self.read.add((name, attribute))

    def writes(self, module: Any, attribute: str) -> None:
        """Notes that an attribute is set."""
        name = self.names.get(id(module))
        if name is not None and (name, attribute) not in self.read:
            self.written.add((name, attribute))


_here = threading.local()


@contextmanager
def watched(twin: torch.nn.Module, running: list[str]) -> Iterator[Watch]:
    """A context in which this thread notes which modules of a copy run and which attributes are read of them."""
    modules = dict(twin.named_modules())
    watch = Watch({id(module): name for name, module in modules.items()}, running)
    # Of a class that cannot be derived from nothing is seen, so all of its attributes count as read.
    blind = {name: module for name, module in modules.items() if not hasattr(type(module), _MARK)}
    watch.read |= {(name, attribute) for name, module in blind.items() for attribute in vars(module)}
    before = getattr(_here, "watch", None)
    _here.watch = watch
    try:
        yield watch
    finally:
        _here.watch = before


@cache
def _watched(cls: type) -> type:
    """A module's class under its own name, whose objects tell the present watch what is done with them."""

    def __getattribute__(self: Any, attribute: str) -> Any:
        watch = getattr(_here, "watch", None)
        if watch is not None:
            watch.reads(self, attribute)
        return super(made, self).__getattribute__(attribute)

    def __setattr__(self: Any, attribute: str, value: Any) -> None:
        watch = getattr(_here, "watch", None)
        if watch is not None:
            watch.writes(self, attribute)
        super(made, self).__setattr__(attribute, value)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = getattr(_here, "watch", None)
        if watch is None or (name := watch.names.get(id(self))) is None:
            return super(made, self).__call__(*args, **kwargs)  # pyright: ignore
        watch.running.append(name)
        result = super(made, self).__call__(*args, **kwargs)  # pyright: ignore
        watch.running.pop()  # not after an error, whose message says where it came from
        return result

    described = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    watching = {"__getattribute__": __getattribute__, "__setattr__": __setattr__, "__call__": __call__, _MARK: True}
    try:
        made = type(cls)(cls.__name__, (cls,), {**described, **watching})
    except Exception:  # a class may refuse to be derived from
        return cls
    return made
