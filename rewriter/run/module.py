"""The rewritten module: the user's class with another forward, over the same parameters and buffers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch.nn.modules.lazy import LazyModuleMixin

from ...solvers.problem.plan import Plan
from ..capture.boundary.refused_parts import refuse_parts
from ..capture.call.inner_hooks import warn_of_hooks
from ..capture.call.original import ORIGINAL, OWN_FORWARD, original_class, original_forward
from ..capture.torch_internals import left_alone_by_compile
from ..errors import LowtideError
from .forwards import set_forward, watched_step
from .rewriting import Rewriting


class Rewritten:
    """A mixin for the user's class: forward runs the plan if gradients are enabled, and the original otherwise."""

    lowtide: Rewriting

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the original's forward, in less memory if gradients are enabled."""
        model: Any = self
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or self.lowtide.is_inside:
            return original_forward(model)(*args, **kwargs)
        return self.lowtide.run(model, args, kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":
            vars(self).pop(name, None)
            value = set_forward(self, value)
            if value is None:
                return
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = _state(self)
        return _restore, (original_class(self), state.pop("lowtide"), state.pop(OWN_FORWARD, None)), state

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        duplicate = object.__new__(type(self))
        memo[id(self)] = duplicate
        duplicate.__dict__.update({name: copy.deepcopy(value, memo) for name, value in _state(self).items()})
        return duplicate


def _state(module: Any) -> dict[str, Any]:
    """Return the attributes for copies and pickles, without the result of `compile()`, which calls this module."""
    return {name: value for name, value in vars(module).items() if name != "_compiled_call_impl"}


def _restore(cls: type, rewriting: Rewriting, forward: Any) -> torch.nn.Module:
    """Return an empty rewritten module, for pickle to fill."""
    module = object.__new__(_rewritten_class(cls))
    module.__dict__["lowtide"] = rewriting
    if forward is not None:
        module.__dict__[OWN_FORWARD] = forward
    return module


@cache
def _rewritten_class(cls: type) -> type:
    """Return the user's class with `Rewritten` as its first base, under the same name."""
    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        ORIGINAL: cls,
    }
    for name in ("plan", "code"):
        # A model's own attribute of that name has priority; ours is still available as `small.lowtide`.
        if not hasattr(cls, name):
            namespace[name] = property(lambda self, name=name: getattr(self.lowtide, name))
    if hasattr(cls, "training_step"):
        namespace["training_step"] = watched_step(cls.training_step)
    rewritten_class = type(cls.__name__, (Rewritten, cls), namespace)
    forward = _with_signature(Rewritten.forward, cls.forward)
    rewritten_class.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    return rewritten_class


def _with_signature(forward: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a forward with the original's signature, which trainers inspect."""

    @left_alone_by_compile
    def rewritten_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    rewritten_forward.__name__, rewritten_forward.__doc__ = "forward", original.__doc__
    # Not __wrapped__: code that unwraps a forward (accelerate) must stop here, not at the original.
    rewritten_forward.__annotations__ = getattr(original, "__annotations__", {})
    with suppress(ValueError, TypeError):
        rewritten_forward.__signature__ = inspect.signature(original)  # pyright: ignore[reportFunctionMemberAccess]
    return rewritten_forward


def make_rewritten(model: torch.nn.Module, rewriting: Rewriting) -> torch.nn.Module:
    """Return a new module next to the original: copies of the module objects with the same parameters and buffers.

    Raises LowtideError, CaptureError for modules that cannot be rewritten.
    """
    if isinstance(model, Rewritten):
        raise LowtideError("this module is rewritten already; pass the original to rewrite")
    for name, module in model.named_modules():
        if isinstance(module, Rewritten):
            raise LowtideError(
                f"part {name} of this module is rewritten already, and cannot be planned again inside the whole; "
                "rewrite the whole from the original, or only this part"
            )
    refuse_parts(model)
    if isinstance(model, LazyModuleMixin):
        raise LowtideError(
            f"the module itself is a {type(model).__name__}, which becomes another class with its first batch; call it "
            "once before rewriting it"
        )
    shared = {id(held): held for module in model.modules() for held in _shared(module)}
    rewritten: Any = copy.deepcopy(model, dict(shared))
    rewritten.__class__ = _rewritten_class(type(model))
    if "forward" in vars(rewritten):
        rewritten.__dict__[OWN_FORWARD] = rewritten.__dict__.pop("forward")
    rewritten.__dict__["lowtide"] = rewriting
    warn_of_hooks(rewritten, rewriting.hooked)
    return rewritten


def _shared(module: torch.nn.Module) -> list[Any]:
    """Return the tensors that a module itself holds, and functions that cannot be copied."""
    held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [value for value in held if isinstance(value, (torch.Tensor, torch.jit.ScriptFunction))]


def prepare(small: Any, args: tuple, kwargs: Mapping[str, Any]) -> Plan:
    """Plan a rewritten module for a kind of call without running it. Raises NothingToDifferentiate."""
    return small.lowtide.prepare(small, args, dict(kwargs))
