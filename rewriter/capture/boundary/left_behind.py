"""Values that forward leaves in modules and arguments in addition to its result: a loss on an attribute, a dict."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch

from ...errors import CaptureError, LowtideWarning, StructureError
from .pytree import Structure, flatten

_ARGUMENTS = "the arguments"
_OWN = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")  # looked at by `untouched`
_CONTAINERS = (list, tuple, dict, SimpleNamespace)
_OPAQUE = (torch.Tensor, torch.nn.Module, type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, str, bytes)
_DEPTH = 4


@dataclass(frozen=True)
class Place:
    """A holder of values: a module or the call's arguments, or an object reached from one of them by `path`.

    owner: the module's name, None for the arguments.
    path: attributes and keys, as pairs (whether it is an attribute, name or key).
    """

    owner: str | None
    path: tuple[tuple[bool, Any], ...] = ()

    def of(self, modules: Mapping[str, torch.nn.Module], arguments: Any) -> Any:
        """Return the holder in these modules (by name) and arguments."""
        holder: Any = arguments if self.owner is None else modules[self.owner]
        for is_attribute, name in self.path:
            holder = getattr(holder, name) if is_attribute else holder[name]
        return holder

    def __str__(self) -> str:
        start = _ARGUMENTS if self.owner is None else self.owner or "the root module"
        return start + "".join(f".{name}" if is_attribute else f"[{name!r}]" for is_attribute, name in self.path)


@dataclass(frozen=True)
class Stash:
    """A value that forward left in a holder.

    entry: the attribute or key; None if a list grew by the values.
    structure: the structure of the value, whose tensors are outputs of the step.
    whole: whether the value replaces all former content of the holder.
    """

    place: Place
    entry: tuple[bool, Any] | None
    structure: Structure
    whole: bool = False

    @property
    def name(self) -> str:
        """The name of its tensors, as an attribute of the module."""
        owner = [self.place.owner] if self.place.owner else []
        return ".".join([*owner, *(str(name) for _, name in self._path)])

    @property
    def attribute(self) -> tuple[str, str] | None:
        """The module (by name) and its attribute that holds the value at any depth; None for the arguments."""
        return None if self.place.owner is None else (self.place.owner, self._path[0][1])

    @property
    def _path(self) -> list[tuple[bool, Any]]:
        """The attributes and keys from the owner to the value."""
        return [*self.place.path, *([self.entry] if self.entry else [])]

    def held(self, modules: Mapping[str, torch.nn.Module]) -> Any:
        """Return the present value in a module that the next step will replace; None if there is none.

        A list that only grows, and the arguments, belong to the caller: None for these.
        """
        if self.place.owner is None or (self.entry is None and not self.whole):
            return None
        with suppress(AttributeError, LookupError, TypeError):
            holder = self.place.of(modules, None)
            if self.entry is None:
                return list(holder.values()) if isinstance(holder, dict) else list(holder)
            return getattr(holder, self.entry[1]) if self.entry[0] else holder[self.entry[1]]
        return None

    def release(self, modules: Mapping[str, torch.nn.Module]) -> None:
        """Release the value that the previous step left in a module, so that it does not overlap the new one."""
        if self.held(modules) is None:
            return
        holder = self.place.of(modules, None)
        if self.entry is None:
            holder.clear()
        elif self.entry[0]:
            setattr(holder, self.entry[1], None)
        else:
            holder[self.entry[1]] = None

    def put(self, tensors: list[torch.Tensor], modules: Mapping[str, torch.nn.Module], arguments: Any) -> None:
        """Put the tensors of a step where forward would have left them."""
        holder, value = self.place.of(modules, arguments), self.structure.unflatten(tensors)
        if self.entry is None:
            if self.whole:
                holder.clear()
            (holder.extend if isinstance(holder, list) else holder.update)(value)
        elif self.entry[0]:
            setattr(holder, self.entry[1], value)
        else:
            holder[self.entry[1]] = value


@dataclass
class _HolderSnapshot:
    """A holder and its entries, by name or key, before forward."""

    place: Place
    holder: Any
    entries: dict[Any, Any]


@dataclass
class Before:
    """The content of modules and arguments before forward ran.

    Objects of which no copy is made are shared with the original; `put_back` restores their attributes.
    """

    held: list[_HolderSnapshot] = field(default_factory=list)
    _known: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, model: torch.nn.Module, arguments: tuple[list[Any], dict[str, Any]]) -> Before:
        """Return the present content of a copied module (`shadow_of`) and of a call's (args, kwargs)."""
        before = cls()
        for name, module in model.named_modules():
            before._look(Place(name), module, 0)
        before._look(Place(None), tuple(arguments), 0)
        return before

    def _look(self, place: Place, holder: Any, depth: int) -> None:
        if id(holder) in self._known or depth > _DEPTH:
            return
        self._known.add(id(holder))
        entries = _entries(holder)
        self.held.append(_HolderSnapshot(place, holder, entries))
        attributes = _has_attributes(holder)
        for name, value in entries.items():
            if isinstance(value, _OPAQUE) or not (isinstance(value, _CONTAINERS) or _is_plain_object(value)):
                continue
            self._look(Place(place.owner, (*place.path, (attributes, name))), value, depth + 1)

    def changes(self) -> Iterator[tuple[Place, tuple[bool, Any] | None, Any, bool]]:
        """Yield each change since then, as (holder, entry, value, whether the former content is gone)."""
        for snapshot in self.held:
            present, attributes = _entries(snapshot.holder), _has_attributes(snapshot.holder)
            if isinstance(snapshot.holder, list):
                before = list(snapshot.entries.values())
                after = list(snapshot.holder)
                kept = len(after) >= len(before) and all(a is b for a, b in zip(after, before, strict=False))
                if not kept or len(after) > len(before):
                    yield snapshot.place, None, after[len(before) :] if kept else after, not kept
                continue
            removed = [name for name in snapshot.entries if name not in present]
            if removed and not attributes:
                yield snapshot.place, None, dict(present), True
                continue
            for name, value in present.items():
                if name not in snapshot.entries or snapshot.entries[name] is not value:
                    yield snapshot.place, (attributes, name), value, False
            if removed:
                yield snapshot.place, (True, removed[0]), None, False

    def put_back(self) -> None:
        """Restore the attributes of objects that are shared with the original."""
        for snapshot in self.held:
            if _is_plain_object(snapshot.holder):
                vars(snapshot.holder).clear()
                vars(snapshot.holder).update(snapshot.entries)


@dataclass
class Left:
    """The values with tensors that forward left, and notes on other changes; filled once forward has ended."""

    stashes: list[tuple[Stash, list[Any]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def left_by(shadow: torch.nn.Module, arguments: tuple[Any, Any]) -> Iterator[Left]:
    """Run a shadow copy (`shadow_of`) on a call's (args, kwargs) within this context; yield what it left in both.

    Raises CaptureError for tensors in an object that cannot be traversed. Warns about public attributes that a
    rewritten forward does not set.
    """
    before, left = Before.of(shadow, arguments), Left()
    try:
        yield left
        others: dict[str, list[str]] = {}
        for place, entry, value, whole in before.changes():
            stash = stash_of(place, entry, value, whole)
            if stash is not None:
                left.stashes.append(stash)
            elif place.owner is not None:
                others.setdefault(str(place), []).append(str(entry[1] if entry else "a list"))
        for place, names in others.items():
            note = (
                f"forward sets {', '.join(sorted(names))} of {place}: capture restored it, and the rewritten forward "
                "does not set it"
            )
            left.notes.append(note)
            if any(not name.startswith("_") for name in names):
                warnings.warn(
                    f"{note}; results that depend on it keep the value seen at capture: make it a buffer or pass it "
                    "as an argument",
                    LowtideWarning,
                    stacklevel=2,
                )
    finally:
        before.put_back()


def stash_of(place: Place, entry: tuple[bool, Any] | None, value: Any, whole: bool) -> tuple[Stash, list[Any]] | None:
    """Return the stash that reproduces a changed value at each step, and its tensors; None without tensors.

    Raises CaptureError for tensors in an object that cannot be traversed.
    """
    name = Stash(place, entry, Structure(None, (), None)).name
    try:
        tensors, structure = flatten(value, name)
    except StructureError:
        if not _holds_tensor(value):
            return None
        raise CaptureError(
            f"forward leaves tensors in {name} of {place}, a {type(value).__qualname__}, which lowtide cannot "
            "traverse: it would hold the captured step's tensors at every step; return them, or put them in a list "
            "or dict"
        ) from None
    named = Structure(structure.tree, tuple(f"{name}.{n}" if n else name for n in structure.names), structure.key)
    if not tensors and place.owner is not None:
        return None
    return Stash(place, entry, named, whole), tensors


def _entries(holder: Any) -> dict[Any, Any]:
    if isinstance(holder, torch.nn.Module):
        return {name: value for name, value in vars(holder).items() if name not in _OWN and "hooks" not in name}
    if isinstance(holder, dict):
        return dict(holder)
    return dict(enumerate(holder)) if isinstance(holder, (list, tuple)) else dict(vars(holder))


def _has_attributes(holder: Any) -> bool:
    return not isinstance(holder, (dict, list, tuple))


def _is_plain_object(value: Any) -> bool:
    """Return whether a value is an object of a Python class that capture does not copy."""
    cls = type(value)
    if isinstance(value, (*_OPAQUE, dict, list, tuple, set, SimpleNamespace)) or not hasattr(value, "__dict__"):
        return False
    return cls.__module__.partition(".")[0] not in ("torch", "builtins", "numpy", "functools", "threading", "logging")


def _holds_tensor(value: Any, depth: int = 0) -> bool:
    """Return whether an object contains a tensor."""
    if isinstance(value, torch.Tensor):
        return True
    if depth > _DEPTH or isinstance(value, (type, ModuleType, FunctionType, str)):
        return False
    if isinstance(value, dict):
        parts: Any = value.values()
    elif isinstance(value, (list, tuple, set)):
        parts = value
    else:
        parts = getattr(value, "__dict__", {}).values()
    return any(_holds_tensor(part, depth + 1) for part in list(parts))
