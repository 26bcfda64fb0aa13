"""The present modules, parameters and buffers of a model, with a quick check that nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

import torch

from ..boundary.tensor_owners import Owners
from .identity import Interned, Same
from .inner_hooks import HOOKS
from .original import original_class
from .tensor_kinds import Owned, kind_of, sharing_among

_HELD = ("_parameters", "_buffers", "_modules")
_FLAGS = ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called")
_QUICK: tuple[Callable[[torch.Tensor], Any], ...] = (
    attrgetter("requires_grad"),
    attrgetter("shape"),
    torch.Tensor.stride,
    torch.Tensor.data_ptr,
)


class ModuleState:
    """The properties of the module tree on which a call depends: classes, modes, hooks, and layouts of tensors.

    key: equal for trees that the same captured step can serve; attributes read by forward belong to `Settings`.

    `is_current` compares only identities and lengths, so it is fast enough for each call. It returns False for
    objects that it cannot compare, and the state is then rebuilt.
    """

    def __init__(self, root: torch.nn.Module) -> None:
        self.owners = Owners(root)
        self._modules = list(self.owners.modules.values())
        tensors = [*self.owners.parameters(), *self.owners.buffers()]
        self.owned = Owned.of(tensors)
        self._tensors = tensors
        self._trains = any(tensor.requires_grad for tensor in tensors)
        self._snapshot()
        self.key = Interned((tuple(self._describe_modules()), tuple(map(kind_of, tensors)), sharing_among(tensors)))

    @property
    def trains(self) -> bool:
        """Return whether a parameter, or a buffer, requires a gradient."""
        return self._trains

    def is_current(self) -> bool:
        """Return whether no module, mode, hook, parameter or buffer was replaced, and no layout changed."""
        modules, dicts = self._modules, self._dicts
        return (
            self._sees_all
            and all(map(is_, map(type, modules), self._types))
            and all(map(is_, map(vars, modules), dicts))
            and list(map(attrgetter("training"), modules)) == self._modes
            and all(map(is_, map(dict.get, dicts[1:], repeat("forward")), self._forwards))
            and all(map(is_, map(attrgetter("forward"), self._classes), self._class_forwards))
            and not any(self._empty)
            and list(map(len, self._views)) == self._lengths
            and all(map(is_, chain.from_iterable(self._views), self._parts))
            and self._tensors_quick() == self._quick
        )

    def _snapshot(self) -> None:
        modules = self._modules
        self._types = list(map(type, modules))
        self._dicts = list(map(vars, modules))
        self._modes = [module.training for module in modules]
        # The forward and the hooks of the root's instance belong to the rewritten module itself.
        self._forwards = [held.get("forward") for held in self._dicts[1:]]
        self._classes = list(dict.fromkeys([original_class(modules[0]), *self._types[1:]]))
        self._class_forwards = [cls.forward for cls in self._classes]
        held = [getattr(module, name) for module in modules for name in _HELD]
        held += [getattr(module, name) for module in modules[1:] for name in HOOKS]
        self._sees_all = all(isinstance(container, dict) for container in held)
        self._empty = [container for container in held if not container]  # nearly all of them, since hooks are rare
        self._views = [container.values() for container in held if container] if self._sees_all else []
        self._lengths = list(map(len, self._views))
        self._parts = list(chain.from_iterable(self._views))
        self._quick = self._tensors_quick()

    def _tensors_quick(self) -> object:
        """Return the properties that most often change of parameters and buffers that stay the same objects."""
        try:
            return [list(map(look, self._tensors)) for look in _QUICK]
        except (RuntimeError, NotImplementedError):
            self._sees_all = False  # a tensor without an address: the state is rebuilt each time
            return None

    def _describe_modules(self) -> Iterator[Hashable]:
        places = {id(tensor): place for place, tensor in enumerate(self._tensors)}
        for name, module in self.owners.modules.items():
            cls = original_class(module)
            description: list[Hashable] = [name, cls, Same(cls.forward), module.training]
            if name:  # the hooks of the root run around the step
                description += [Same(vars(module).get("forward"))]
                description += [tuple(map(Same, getattr(module, hooks).values())) for hooks in HOOKS]
                description += [len(getattr(module, flags, ())) for flags in _FLAGS]
            for held in (module._parameters, module._buffers):
                description += [(key, tensor if tensor is None else places[id(tensor)]) for key, tensor in held.items()]
            yield tuple(description)
