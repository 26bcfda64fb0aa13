"""The rewritten module: the user's class with another forward, over the same parameters and buffers."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch.nn.modules.lazy import LazyModuleMixin

from ..solvers.plan import Plan
from .errors import LowtideError
from .inner_hooks import HOOKS, warn_of_hooks
from .refused_parts import refuse_parts
from .rewriting import Rewriting
from .torch_internals import left_alone_by_compile

_NOT_THE_ORIGINALS = ("lowtide", "_lowtide_forward", "_compiled_call_impl", *HOOKS)


class Rewritten:
    """Mixed into the user's class: forward goes through the plan in training, and through the original otherwise."""

    lowtide: Rewriting

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's forward, in less memory while training."""
        model: Any = self
        if not (model.training and torch.is_grad_enabled()):
            return original_forward(model)(*args, **kwargs)
        return self.lowtide.run(model, original_view(model), args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = _state(self)
        return _restore, (original_class(self), state.pop("lowtide"), state.pop("_lowtide_forward", None)), state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update({name: copy.deepcopy(value, memo) for name, value in _state(self).items()})
        return twin


def _state(module: Any) -> dict[str, Any]:
    """What copies and pickles carry: not what `compile()` made, which would call the module that it was made of."""
    return {name: value for name, value in vars(module).items() if name != "_compiled_call_impl"}


def _restore(cls: type, rewriting: Rewriting, forward: Any) -> torch.nn.Module:
    """An empty rewritten module, for pickle to fill."""
    module = object.__new__(_rewritten_class(cls))
    module.__dict__["lowtide"] = rewriting
    if forward is not None:
        module.__dict__["_lowtide_forward"] = forward
    return module


@cache
def _rewritten_class(cls: type) -> type:
    """The user's class with `Rewritten` before it, under its own name."""
    told: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    for name in ("plan", "code"):
        # A model's own attribute of that name goes first; ours is still reached through `small.lowtide`.
        if not hasattr(cls, name):
            told[name] = property(lambda self, name=name: getattr(self.lowtide, name))
    made = type(cls.__name__, (Rewritten, cls), told)
    forward = _with_signature(Rewritten.forward, cls.forward)
    made.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    return made


def _with_signature(forward: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that tells the original's signature, which trainers look at."""

    @left_alone_by_compile
    def rewritten_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    rewritten_forward.__name__, rewritten_forward.__doc__ = "forward", original.__doc__
    rewritten_forward.__wrapped__ = original  # pyright: ignore[reportFunctionMemberAccess]
    return rewritten_forward


def original_class(model: Any) -> type:
    """The class that a rewritten module was made of."""
    classes = type(model).__mro__
    return classes[classes.index(Rewritten) + 1]


def original_forward(model: Any) -> Callable[..., Any]:
    """The forward that a rewritten module had before."""
    own = vars(model).get("_lowtide_forward")
    return own if own is not None else original_class(model).forward.__get__(model)


def original_view(model: Any) -> torch.nn.Module:
    """The same module under its original class: it shares all parts, and its own hooks do not run."""
    view = object.__new__(original_class(model))
    attributes = {k: v for k, v in vars(model).items() if k not in _NOT_THE_ORIGINALS}
    view.__dict__.update(attributes, **{name: OrderedDict() for name in HOOKS})
    if "_lowtide_forward" in vars(model):
        view.__dict__["forward"] = vars(model)["_lowtide_forward"]
    return view


def make_rewritten(model: torch.nn.Module, rewriting: Rewriting) -> torch.nn.Module:
    """A new module beside the original: copies of the module objects, the same parameters and buffers in them."""
    if isinstance(model, Rewritten):
        raise LowtideError("this module is rewritten already; pass the original to rewrite")
    if not isinstance(model, torch.nn.Module):
        raise LowtideError(f"rewrite takes a torch.nn.Module, not a {type(model).__qualname__}")
    for name, module in model.named_modules():
        if isinstance(module, Rewritten):
            raise LowtideError(
                f"part {name} of this module is rewritten already, and its plan cannot be planned again; rewrite the "
                "whole from the original, or this part alone"
            )
    refuse_parts(model)
    if isinstance(model, LazyModuleMixin):
        raise LowtideError(
            f"the module itself is a {type(model).__name__}, which becomes another class with its first batch; call it "
            "once and rewrite it then"
        )
    shared = {id(held): held for module in model.modules() for held in _shared(module)}
    twin: Any = copy.deepcopy(model, dict(shared))
    twin.__class__ = _rewritten_class(type(model))
    if "forward" in vars(twin):
        twin.__dict__["_lowtide_forward"] = twin.__dict__.pop("forward")
    twin.__dict__["lowtide"] = rewriting
    warn_of_hooks(twin, rewriting.hooked)
    return twin


def _shared(module: torch.nn.Module) -> list[Any]:
    """The parameters, buffers and other tensors that a module holds itself, and functions that cannot be copied."""
    held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [value for value in held if isinstance(value, (torch.Tensor, torch.jit.ScriptFunction))]


def prepare(small: Any, args: tuple, kwargs: Mapping[str, Any]) -> Plan:
    """Plans a rewritten module for a kind of call without running it. Raises NothingToDifferentiate."""
    return small.lowtide.prepare(original_view(small), args, dict(kwargs))
