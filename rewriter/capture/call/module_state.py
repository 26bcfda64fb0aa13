"""The modules, parameters and buffers of a model as they stand, with a quick way to see that nothing has changed."""

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
    """What a call depends on of the module tree: classes, modes, hooks, and how parameters and buffers lie.

    key: equal for trees for which the same captured step serves, as far as the tree goes; what forward reads of the
    modules' attributes is a matter of `Settings`. `is_current` compares identities and lengths only, so it is asked at
    each call; what it cannot see through makes it say no, and the state is then made anew.
    """

    def __init__(self, root: torch.nn.Module) -> None:
        self.owners = Owners(root)
        self._modules = list(self.owners.modules.values())
        tensors = [*self.owners.parameters(), *self.owners.buffers()]
        self.owned = Owned.of(tensors)
        self._tensors = tensors
        self._trains = any(tensor.requires_grad for tensor in tensors)
        self._snapshot()
        self.key = Interned((tuple(self._modules_told()), tuple(map(kind_of, tensors)), sharing_among(tensors)))

    @property
    def trains(self) -> bool:
        """Whether a parameter, or a buffer, requires a gradient."""
        return self._trains

    def is_current(self) -> bool:
        """Whether no module, mode, hook, parameter or buffer has been exchanged, and none lies otherwise."""
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
        # The forward of the root's instance is a matter of the rewritten module itself, and so are its hooks.
        self._forwards = [held.get("forward") for held in self._dicts[1:]]
        self._classes = list(dict.fromkeys([original_class(modules[0]), *self._types[1:]]))
        self._class_forwards = [cls.forward for cls in self._classes]
        held = [getattr(module, name) for module in modules for name in _HELD]
        held += [getattr(module, name) for module in modules[1:] for name in HOOKS]
        self._sees_all = all(isinstance(one, dict) for one in held)
        self._empty = [one for one in held if not one]  # nearly all of them: who has hooks?
        self._views = [one.values() for one in held if one] if self._sees_all else []
        self._lengths = list(map(len, self._views))
        self._parts = list(chain.from_iterable(self._views))
        self._quick = self._tensors_quick()

    def _tensors_quick(self) -> object:
        """What most often changes of parameters and buffers that stay the same objects."""
        try:
            return [list(map(look, self._tensors)) for look in _QUICK]
        except (RuntimeError, NotImplementedError):
            self._sees_all = False  # a tensor that does not tell where it lies: it is looked at anew each time
            return None

    def _modules_told(self) -> Iterator[Hashable]:
        places = {id(tensor): place for place, tensor in enumerate(self._tensors)}
        for name, module in self.owners.modules.items():
            cls = original_class(module)
            told: list[Hashable] = [name, cls, Same(cls.forward), module.training]
            if name:  # the hooks of the root run around the step
                told += [Same(vars(module).get("forward"))]
                told += [tuple(map(Same, getattr(module, hooks).values())) for hooks in HOOKS]
                told += [len(getattr(module, flags, ())) for flags in _FLAGS]
            for held in (module._parameters, module._buffers):
                told += [(key, tensor if tensor is None else places[id(tensor)]) for key, tensor in held.items()]
            yield tuple(told)
