"""Names the tensors that a step starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SourceKind = Literal["parameter", "buffer", "input", "constant", "tangent", "output"]


@dataclass(frozen=True)
class Source:
    """The origin of a placeholder's value, or an output that retains its gradient.

    name: the qualified name, the argument's place, or the output a tangent belongs to.
    index: counts within the kind.
    """

    kind: SourceKind
    name: str
    index: int
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.kind, self.name, self.index)))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[type[Source], tuple[SourceKind, str, int]]:
        return Source, (self.kind, self.name, self.index)  # another process hashes text differently
