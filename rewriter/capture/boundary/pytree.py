"""Flatten nested arguments and outputs into tensors and rebuild them."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from ...errors import StructureError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format)
_FLAT = (torch.Tensor, *_PLAIN)


@dataclass(frozen=True)
class Leaf:
    """A place in a structure: `index` counts the tensors, -1 marks a constant (`value`)."""

    index: int
    value: Any = None


@dataclass(frozen=True)
class Structure:
    """The rest of a nested object without its tensors.

    names: the place of each tensor, e.g. "loss" or "hidden_states.3".
    """

    tree: Any
    names: tuple[str, ...]
    key: Any

    def unflatten(self, tensors: list[Any]) -> Any:
        """Rebuild the object with `tensors` in their places."""
        return _build(self.tree, tensors)


@dataclass(frozen=True)
class _Node:
    """A container: a function that builds it from its children, and the children."""

    make: Callable[[list[Any]], Any]
    children: tuple[Any, ...]


def flatten(nested: Any, what: str) -> tuple[list[torch.Tensor], Structure]:
    """Return the tensors of nested lists, tuples, dicts, dataclasses and namespaces, and the structure without them.

    what: the name of the object in errors.
    Raises StructureError for an object that it cannot traverse.
    """
    tensors: list[torch.Tensor] = []
    names: list[str] = []
    tree, key = _walk(nested, "", what, tensors, names)
    return tensors, Structure(tree, tuple(names), key)


_CALLS: dict[Any, Structure] = {}  # structures of earlier calls without nesting
_MOST_CALLS = 256


def flatten_call(args: tuple, kwargs: dict[str, Any]) -> tuple[list[torch.Tensor], Structure]:
    """Return `flatten((args, kwargs), "argument")`, from a cache for calls without nested arguments."""
    values = (*args, *kwargs.values())
    constants = [None if isinstance(v, torch.Tensor) else _key_of(v) for v in values if isinstance(v, _FLAT)]
    if len(constants) < len(values):
        return flatten((args, kwargs), "argument")
    key = len(args), *kwargs, *constants
    structure = _CALLS.get(key)
    if structure is None:
        if len(_CALLS) >= _MOST_CALLS:
            _CALLS.clear()
        tensors, structure = flatten((args, kwargs), "argument")
        _CALLS[key] = structure
        return tensors, structure
    return [v for v in values if isinstance(v, torch.Tensor)], structure


def _key_of(constant: Any) -> tuple[type, Any]:
    """Return a key that separates equal constants of different calls.

    True, 1 and 1.0 differ by type, 0.0 and -0.0 by text; by text nan equals nan.
    """
    return type(constant), repr(constant) if isinstance(constant, (float, complex)) else constant


def _walk(value: Any, path: str, what: str, tensors: list[torch.Tensor], names: list[str]) -> tuple[Any, Any]:
    """Return the tree and the key of an object; append its tensors and their names to the lists."""
    # A recursive closure inside `flatten` would keep the tensors alive until garbage collection.
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        names.append(path)
        return Leaf(len(tensors) - 1), "T"
    if isinstance(value, _PLAIN):
        return Leaf(-1, value), _key_of(value)
    parts = _take_apart(value)
    if parts is None:
        raise StructureError(
            f"{what}{'.' + path if path else ''} is a {type(value).__qualname__}, which lowtide cannot look into: pass "
            "tensors, numbers, strings, None, or lists, tuples, dicts, dataclasses and namespaces of these"
        )
    make, items = parts
    children = [_walk(item, f"{path}.{name}" if path else name, what, tensors, names) for name, item in items]
    # Keys 1 and "1" have the same name, and so may two classes, but they are different calls in Python.
    names_key = tuple((type(k), k) for k in value) if isinstance(value, dict) else tuple(name for name, _ in items)
    key = (type(value), names_key, tuple(k for _, k in children))
    return _Node(make, tuple(child for child, _ in children)), key


def _take_apart(value: Any) -> tuple[Callable[[list[Any]], Any], list[tuple[str, Any]]] | None:
    """Return a function that rebuilds a container from its children, and its named children; None if it is unknown."""
    cls = type(value)
    if isinstance(value, dict):
        return _dict_of(value), [(str(k), v) for k, v in value.items()]
    if isinstance(value, tuple) and hasattr(cls, "_fields"):
        return (lambda children: cls(*children)), list(zip(cls._fields, value, strict=True))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, torch.Size):
        return (lambda children: torch.Size(children)), [(str(i), v) for i, v in enumerate(value)]
    if isinstance(value, (list, tuple)):
        return (lambda children: cls(children)), [(str(i), v) for i, v in enumerate(value)]
    if isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return _object_of(value)
    return None


def _dict_of(value: dict[Any, Any]) -> Callable[[list[Any]], Any]:
    """Return a function that makes a dict of the same class and keys with other values."""
    cls, keys = type(value), list(value)
    if cls is dict:
        return lambda children: dict(zip(keys, children, strict=True))
    if dataclasses.is_dataclass(cls):
        # A transformers ModelOutput is an OrderedDict whose constructor takes its fields by name.
        return lambda children: cls(**dict(zip(keys, children, strict=True)))
    # Other constructors take other arguments (Counter counts, defaultdict needs a factory), and a class may refuse
    # changes: so an emptied copy is filled through the methods of dict.
    ordered = isinstance(value, OrderedDict)
    fill = OrderedDict.__setitem__ if ordered else dict.__setitem__
    blank = copy.copy(value)
    (OrderedDict if ordered else dict).clear(blank)  # pyright: ignore[reportArgumentType]

    def make(children: list[Any]) -> Any:
        made = copy.copy(blank)
        for key, child in zip(keys, children, strict=True):
            fill(made, key, child)  # pyright: ignore[reportArgumentType]
        return made

    return make


def _object_of(value: Any) -> tuple[Callable[[list[Any]], Any], list[tuple[str, Any]]]:
    """Return a function that makes a namespace or dataclass of the same class, and the attributes of this one.

    The attributes include fields that are not arguments of the constructor, and attributes that were set later.
    """
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    names = dict.fromkeys([*(f.name for f in fields if hasattr(value, f.name)), *getattr(value, "__dict__", ())])
    cls = type(value)

    def make(children: list[Any]) -> Any:
        made = object.__new__(cls) if fields else SimpleNamespace.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(made, name, child)
        return made

    return make, [(name, getattr(value, name)) for name in names]


def _build(tree: Any, tensors: list[Any]) -> Any:
    if isinstance(tree, Leaf):
        return tensors[tree.index] if tree.index >= 0 else tree.value
    return tree.make([_build(child, tensors) for child in tree.children])
