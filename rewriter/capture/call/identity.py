"""Keys that are compared by identity, and keys that are hashed once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any


class Same:
    """A key that equals another only if both hold the same object, which it keeps alive so that its id stays unique."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)

    def __repr__(self) -> str:
        return f"Same({type(self.held).__qualname__} at {id(self.held):#x})"


class Interned:
    """A key with many parts that is hashed once, and reused while nothing changes."""

    __slots__ = ("_hash", "content")

    def __init__(self, content: Hashable) -> None:
        self.content = content
        self._hash = hash(content)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Interned) and self._hash == other._hash and self.content == other.content

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Interned({self.content!r})"
