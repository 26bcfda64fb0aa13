"""Make a shadow copy of a module: new module objects over the same tensors, in which capture runs forward.

Another thread may run the original at the same time: it sees neither replaced parameters nor changed attributes.
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
    """Return a shadow copy: copies of all module objects and of their containers, with the same tensors.

    Other objects are shared. Methods bound to a module of the tree are bound to its copy.
    """
    return _Copier().copied(model)


class _Copier:
    """Copies modules and containers, each once."""

    def __init__(self) -> None:
        self.known: dict[int, Any] = {}
        self.alive: list[Any] = []  # objects known by id, which must stay alive

    def copied(self, value: Any) -> Any:
        """Return the copy of a module, container, bound method or partial; any other value itself."""
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
        return self._copy_other if isinstance(value, (dict, list, set)) else None

    def _remember(self, value: Any, shadow: Any) -> Any:
        self.known[id(value)] = shadow
        self.alive.append(value)
        return shadow

    def _module(self, module: torch.nn.Module) -> torch.nn.Module:
        shadow = self._remember(module, object.__new__(_watched(type(module))))
        for name, value in list(vars(module).items()):
            shadow.__dict__[name] = self.copied(value)
        return shadow

    def _dict(self, value: dict) -> dict:
        shadow = self._remember(value, copy.copy(value))
        shadow.clear()
        for key, held in list(value.items()):
            shadow[self.copied(key)] = self.copied(held)
        return shadow

    def _sequence(self, value: Any) -> Any:
        shadow = self._remember(value, type(value)())
        (shadow.extend if isinstance(shadow, list) else shadow.update)(self.copied(held) for held in list(value))
        return shadow

    def _tuple(self, value: tuple) -> tuple:
        parts = [self.copied(held) for held in value]
        if all(part is held for part, held in zip(parts, value, strict=True)):
            return value
        return self._remember(value, type(value)(*parts) if hasattr(value, "_fields") else tuple(parts))

    def _namespace(self, value: SimpleNamespace) -> SimpleNamespace:
        shadow = self._remember(value, SimpleNamespace())
        shadow.__dict__.update({name: self.copied(held) for name, held in vars(value).items()})
        return shadow

    def _method(self, value: MethodType) -> MethodType:
        owner = self.copied(value.__self__)
        return value if owner is value.__self__ else MethodType(value.__func__, owner)

    def _partial(self, value: functools.partial) -> functools.partial:
        named = {name: self.copied(held) for name, held in value.keywords.items()}
        return functools.partial(self.copied(value.func), *map(self.copied, value.args), **named)

    def _copy_other(self, value: Any) -> Any:
        # A subclass may refuse to be copied (a frozen configuration): then nothing changes it either.
        try:
            return self._remember(value, copy.copy(value))
        except Exception:
            return value


@dataclass
class Watch:
    """The reads, writes and calls that one thread observes while a shadow copy runs.

    names: names of the modules, by id.
    running: names of the modules that run now, innermost last.
    read: (module name, attribute name) of attributes that were read before they were set.
    written: (module name, attribute name) of attributes that were set first.
    """

    names: dict[int, str]
    running: list[str] = field(default_factory=list)
    read: set[tuple[str, str]] = field(default_factory=set)
    written: set[tuple[str, str]] = field(default_factory=set)

    def reads(self, module: Any, attribute: str) -> None:
        """Record that an attribute is read."""
        name = self.names.get(id(module))
        if name is not None and (name, attribute) not in self.written:
            self.read.add((name, attribute))

    def writes(self, module: Any, attribute: str) -> None:
        """Record that an attribute is set."""
        name = self.names.get(id(module))
        if name is not None and (name, attribute) not in self.read:
            self.written.add((name, attribute))


_here = threading.local()


@contextmanager
def watched(shadow: torch.nn.Module, running: list[str]) -> Iterator[Watch]:
    """Record in this thread which modules of a shadow copy run and which of their attributes are read."""
    modules = dict(shadow.named_modules())
    watch = Watch({id(module): name for name, module in modules.items()}, running)
    # A class that cannot be subclassed is not observed, so all of its attributes count as read.
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
    """Return a subclass of a module's class, under the same name, whose objects report to the present watch."""

    def __getattribute__(self: Any, attribute: str) -> Any:
        watch = getattr(_here, "watch", None)
        if watch is not None:
            watch.reads(self, attribute)
        return super(subclass, self).__getattribute__(attribute)

    def __setattr__(self: Any, attribute: str, value: Any) -> None:
        watch = getattr(_here, "watch", None)
        if watch is not None:
            watch.writes(self, attribute)
        super(subclass, self).__setattr__(attribute, value)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        watch = getattr(_here, "watch", None)
        if watch is None or (name := watch.names.get(id(self))) is None:
            return super(subclass, self).__call__(*args, **kwargs)  # pyright: ignore
        watch.running.append(name)
        result = super(subclass, self).__call__(*args, **kwargs)  # pyright: ignore
        watch.running.pop()  # not after an error, whose message names the module
        return result

    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    methods = {"__getattribute__": __getattribute__, "__setattr__": __setattr__, "__call__": __call__, _MARK: True}
    try:
        subclass = type(cls)(cls.__name__, (cls,), {**namespace, **methods})
    except Exception:  # a class may refuse subclasses
        return cls
    return subclass
