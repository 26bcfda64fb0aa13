"""Takes nested arguments and outputs apart into tensors and puts them together again."""

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
    """What is left of a nested object when its tensors are taken out.

    `names[i]` says where tensor i stood, e.g. "loss" or "hidden_states.3".
    """

    tree: Any
    names: tuple[str, ...]
    key: Any

    def unflatten(self, tensors: list[Any]) -> Any:
        """The object again, with `tensors` in their places."""
        return _build(self.tree, tensors)


@dataclass(frozen=True)
class _Node:
    """A container: how to make it from its children, and the children."""

    make: Callable[[list[Any]], Any]
    children: tuple[Any, ...]


def flatten(told: Any, what: str) -> tuple[list[torch.Tensor], Structure]:
    """The tensors of nested lists, tuples, dicts, dataclasses and namespaces, and the structure without them.

    `what` names the object in errors. Raises StructureError for an object it cannot look into.
    """
    tensors: list[torch.Tensor] = []
    names: list[str] = []
    tree, key = _walk(told, "", what, tensors, names)
    return tensors, Structure(tree, tuple(names), key)


_CALLS: dict[Any, Structure] = {}  # of flat calls that came before
_MOST_CALLS = 256


def flatten_call(args: tuple, kwargs: dict[str, Any]) -> tuple[list[torch.Tensor], Structure]:
    """`flatten((args, kwargs), "argument")`, at once for a call like one that came before with nothing nested in it."""
    values = (*args, *kwargs.values())
    told = [None if isinstance(v, torch.Tensor) else _key_of(v) for v in values if isinstance(v, _FLAT)]
    if len(told) < len(values):
        return flatten((args, kwargs), "argument")
    key = len(args), *kwargs, *told
    structure = _CALLS.get(key)
    if structure is None:
        if len(_CALLS) >= _MOST_CALLS:
            _CALLS.clear()
        tensors, structure = flatten((args, kwargs), "argument")
        _CALLS[key] = structure
        return tensors, structure
    return [v for v in values if isinstance(v, torch.Tensor)], structure


def _key_of(constant: Any) -> tuple[type, Any]:
    """Tells constants apart that are equal and yet make other calls: True, 1 and 1.0 by their types, 0.0 and -0.0 by
    their text, by which nan is nan too."""
    return type(constant), repr(constant) if isinstance(constant, (float, complex)) else constant


def _walk(value: Any, path: str, what: str, tensors: list[torch.Tensor], names: list[str]) -> tuple[Any, Any]:
    """The tree and the key of an object; its tensors and their names are added to the lists."""
    # A function within `flatten` that called itself would keep the tensors alive until garbage is collected.
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        names.append(path)
        return Leaf(len(tensors) - 1), "T"
    if isinstance(value, _PLAIN):
        return Leaf(-1, value), _key_of(value)
    parts = _take_apart(value)
    if parts is None:
        raise StructureError(
            f"{what}{'.' + path if path else ''} is a {type(value).__qualname__}, which lowtide cannot look into: "
            "it takes tensors, numbers, strings, None, and lists, tuples, dicts, dataclasses and namespaces of these"
        )
    make, items = parts
    done = [_walk(item, f"{path}.{name}" if path else name, what, tensors, names) for name, item in items]
    # Keys 1 and "1" have one name, and two classes may: what is told apart in Python is another kind of call.
    names_key = tuple((type(k), k) for k in value) if isinstance(value, dict) else tuple(name for name, _ in items)
    key = (type(value), names_key, tuple(k for _, k in done))
    return _Node(make, tuple(child for child, _ in done)), key


def _take_apart(value: Any) -> tuple[Callable[[list[Any]], Any], list[tuple[str, Any]]] | None:
    """How to rebuild a container from its children, and its named children; None if it is not a known container."""
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
    """How to make a dict like another one, of its own class, with other values."""
    cls, keys = type(value), list(value)
    if cls is dict:
        return lambda children: dict(zip(keys, children, strict=True))
    if dataclasses.is_dataclass(cls):
        # A transformers ModelOutput is an OrderedDict whose constructor takes its fields by name.
        return lambda children: cls(**dict(zip(keys, children, strict=True)))
    # Other constructors take something else (Counter counts, defaultdict wants a factory), and a class may refuse
    # changes: so an emptied copy is filled through dict itself.
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
    """How to make a namespace or dataclass like another one with other attributes, and its attributes: fields that
    are no arguments of its constructor too, and what was set besides."""
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
