"""Names in generated code for operations of any namespace, and for objects that have no literal."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from ..text.source_text import is_plain_name, literal

_SHORT = ("aten", "lowtide")  # namespaces with their own names in generated code


class BoundNames:
    """Expressions for operations and constants in generated code, and the objects that some of them name."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._objects: dict[str, Any] = {}

    @property
    def objects(self) -> Mapping[str, Any]:
        """The objects, by name, that the namespace of the code must contain for the expressions."""
        return MappingProxyType(self._objects)

    @property
    def definitions(self) -> list[str]:
        """The meaning of each of these names, in words."""
        return [f"{name} is {value}" for name, value in self._objects.items()]

    def operation(self, target: Any) -> str:
        """Return an expression for an operation: `aten.add.Tensor`, `torch.ops.mine.scale.default`, or a bound name."""
        if not isinstance(target, torch._ops.OpOverload):
            return self._bound(target)
        path = (*target._schema.name.partition("::")[::2], target._overloadname)
        if _reached(path) is not target or not all(map(is_plain_name, path[:2])):
            return self._bound(target)
        head = path[0] if path[0] in _SHORT else f"torch.ops.{path[0]}"
        operation = f"{head}.{path[1]}"
        # an overload may be called `from`
        return f"{operation}.{path[2]}" if is_plain_name(path[2]) else f"getattr({operation}, {literal(path[2])})"

    def constant(self, value: Any) -> str:
        """Return an expression for a constant: a literal, or the name of an object that has none."""
        text = literal(value)
        return self._bound(value) if text is None else text

    def _bound(self, value: Any) -> str:
        if id(value) not in self._names:
            self._names[id(value)] = name = f"object_{len(self._objects) + 1}"
            self._objects[name] = value
        return self._names[id(value)]


def _reached(path: tuple[str, ...]) -> Any:
    """Return the object at a path of attributes of `torch.ops`, which may differ if torch uses that name itself."""
    place: Any = torch.ops
    for name in path:
        place = getattr(place, name, None)
    return place


def named_argument(name: str, text: str) -> str:
    """Return an argument given by name: `dim=1`, or `**{'from': 1}` if Python does not allow the name."""
    return f"{name}={text}" if is_plain_name(name) else f"**{{{literal(name)}: {text}}}"
