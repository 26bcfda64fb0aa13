"""Find the settings of modules that forward reads (a probability, a flag), so that changing one is noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from operator import is_
from typing import Any

import torch

from .held_values import ABSENT, HeldValues, is_plain


@dataclass(frozen=True)
class Settings:
    """The attributes of modules that forward read, as (module name, attribute name, key of the value).

    Collections and plain objects are visited; the tensors in them that the captured step uses count by identity.
    used: the ids of those tensors, which the captured step keeps alive.
    """

    read: tuple[tuple[str, str, Any], ...]
    used: frozenset[int] = frozenset()
    _seen: _Seen | None = field(default=None, compare=False, repr=False)

    def are_current(self, modules: Mapping[str, torch.nn.Module]) -> bool:
        """Return whether these modules hold the same objects as when `hold` was last true."""
        seen = self._seen
        return seen is not None and seen.modules is modules and seen.is_current()

    def hold(self, modules: Mapping[str, torch.nn.Module]) -> bool:
        """Return whether the attributes have the same values in these modules, by name."""
        if self.are_current(modules):
            return True
        values = HeldValues(modules, self.used)
        for name, attribute, content in self.read:
            module = modules.get(name)
            if module is None or values.of(module, attribute) != content:
                return False
        object.__setattr__(self, "_seen", _Seen(modules, self.read, values))
        return True

    def forget(self, owner: str, attribute: str) -> None:
        """Release the objects last seen in an attribute of a module (by name), if forward reads it."""
        if self._seen is not None and any((name, read) == (owner, attribute) for name, read, _ in self.read):
            object.__setattr__(self, "_seen", None)


class _Seen:
    """The objects from which settings were read when they last held."""

    def __init__(
        self, modules: Mapping[str, torch.nn.Module], read: Sequence[tuple[str, str, Any]], values: HeldValues
    ) -> None:
        self.modules = modules
        self.sees_all = values.sees_all
        self.dicts = [vars(modules[name]) for name, _, _ in read]
        self.attributes = [attribute for _, attribute, _ in read]
        self.held = list(map(dict.get, self.dicts, self.attributes, repeat(ABSENT)))
        pairs = zip(map(type, map(modules.get, (name for name, _, _ in read))), self.attributes, self.held, strict=True)
        absent = [(cls, attribute) for cls, attribute, held in pairs if held is ABSENT]
        plain = [(cls, attribute) for cls, attribute in absent if is_plain(getattr(cls, attribute, ABSENT))]
        self.classes, self.class_attributes = [cls for cls, _ in plain], [attribute for _, attribute in plain]
        self.class_held = self._of_classes()
        self.views = values.views
        self.lengths = list(map(len, self.views))
        self.parts = list(chain.from_iterable(self.views))

    def is_current(self) -> bool:
        """Return whether all of them are still the same objects."""
        return (
            self.sees_all
            and all(map(is_, map(dict.get, self.dicts, self.attributes, repeat(ABSENT)), self.held))
            and all(map(is_, self._of_classes(), self.class_held))
            and list(map(len, self.views)) == self.lengths
            and all(map(is_, chain.from_iterable(self.views), self.parts))
        )

    def _of_classes(self) -> list[Any]:
        return list(map(getattr, self.classes, self.class_attributes, repeat(ABSENT)))


def settings_of(model: torch.nn.Module, read: set[tuple[str, str]], constants: Sequence[torch.Tensor] = ()) -> Settings:
    """Return the settings with the present values of attributes that were read.

    constants: the held tensors that the captured step uses; for others only shape and dtype matter.
    """
    used = frozenset(id(tensor) for tensor in constants)
    modules = dict(model.named_modules())
    values = HeldValues(modules, used)
    contents = ((name, attribute, values.of(modules[name], attribute)) for name, attribute in sorted(read))
    return Settings(
        tuple((name, attribute, content) for name, attribute, content in contents if content is not None), used
    )
