"""Handle a `forward` that is set on the instance of a rewritten module: rewrite it, or run it around the rewritten one.

Trainers do this: accelerate puts autocast around the existing forward, others replace it by their own.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch

from ..capture.call.identity import Same
from ..capture.call.original import original_class
from ..errors import CaptureError, LowtideWarning

_MOST_VISITED = 500  # functions and their closures visited to find the rewritten forward in them
_OWN = "_lowtide_forward_of"  # the attribute that marks the functions made by this file; its value is the function


@dataclass(frozen=True)
class SetForward:
    """A forward that is rewritten instead of the original one.

    bound: whether its first argument is the module.
    """

    forward: Callable[..., Any]
    bound: bool

    def on(self, module: torch.nn.Module) -> Callable[..., Any]:
        """Return it as the forward of a module."""
        return self.forward.__get__(module) if self.bound else self.forward

    @property
    def key(self) -> tuple[Same, ...]:
        """The identity of the forward; a bound method is a new object at each access."""
        forward = self.forward
        return Same(getattr(forward, "__func__", forward)), Same(getattr(forward, "__self__", None))


def set_forward(model: Any, forward: Any) -> Any | None:
    """Return the function to keep as `forward` of a rewritten module's instance; None for none.

    The module's own forward, rewritten or original, needs none. A forward that calls the rewritten one runs around it.
    Any other forward is rewritten instead of the original.
    """
    function = getattr(forward, "__func__", forward)
    rewritten = type(model).forward
    is_own = getattr(forward, "__self__", model) is model
    if is_own and function in (rewritten, original_class(model).forward):
        return None
    if is_own and getattr(function, _OWN, None) is function:
        return MethodType(function, model)
    if is_own and isinstance(forward, MethodType):
        return MethodType(_served(SetForward(forward.__func__, bound=True), _calls(forward, rewritten)), model)
    return MethodType(_served(SetForward(forward, bound=False), _calls(forward, rewritten)), model)


def _served(custom: SetForward, goes_outside: bool) -> Callable[..., Any]:
    """Return the function that serves a forward.

    goes_outside: whether it runs unchanged, around the rewritten one.
    """
    state = {"outside": goes_outside, "has_warned": False}

    @functools.wraps(custom.forward)
    def served(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = custom.on(self)
        rewriting = self.lowtide
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or rewriting.is_inside:
            return own(*args, **kwargs)
        reason = "it does not call it"
        if not state["outside"]:
            try:
                return rewriting.run(self, args, kwargs, custom)
            except CaptureError as error:
                # It may contain code around the rewritten forward that cannot be captured.
                state["outside"], reason = True, str(error)
        before = rewriting.calls
        returned = own(*args, **kwargs)
        if rewriting.calls == before and not state["has_warned"]:
            state["has_warned"] = True
            warnings.warn(
                f"the forward that was set on this {type(self).__name__} runs instead of the rewritten one, so the "
                f"budget is not in force: {reason}. Set it before rewrite, or call the rewritten forward in it",
                LowtideWarning,
                stacklevel=2,
            )
        return returned

    setattr(served, _OWN, served)
    setattr(served, "_torchdynamo_disable", True)  # noqa: B010
    return served


def _calls(forward: Any, rewritten: Any) -> bool:
    """Return whether a forward refers to the rewritten one, or to one served here."""
    seen: dict[int, Any] = {}
    waiting = [forward]
    while waiting and len(seen) < _MOST_VISITED:
        held = waiting.pop()
        if id(held) in seen:
            continue
        seen[id(held)] = held
        function = getattr(held, "__func__", held)
        if function is rewritten or (held is not forward and getattr(function, _OWN, None) is function):
            return True
        waiting += _parts(held)
    return False


def _parts(held: Any) -> Iterator[Any]:
    """Yield the callables to which a callable refers."""
    if isinstance(held, torch.nn.Module):
        return
    if isinstance(held, functools.partial):
        candidates = [held.func, *held.args, *held.keywords.values()]
    else:
        cells = [cell.cell_contents for cell in getattr(held, "__closure__", None) or () if _is_filled(cell)]
        defaults = [
            *(getattr(held, "__defaults__", None) or ()),
            *(getattr(held, "__kwdefaults__", None) or {}).values(),
        ]
        own = vars(held).values() if hasattr(held, "__dict__") and not isinstance(held, type) else ()
        candidates = [*cells, *defaults, *own, getattr(held, "__func__", None), getattr(held, "__self__", None)]
    yield from (candidate for candidate in candidates if callable(candidate) and not isinstance(candidate, type))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def watched_step(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a trainer's step (Lightning's `training_step`) that warns once if it skips the rewritten forward."""

    @functools.wraps(step)
    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.lowtide.calls
        returned = step(self, *args, **kwargs)
        if torch.is_grad_enabled() and self.lowtide.calls == before and not self.lowtide.has_warned_of_step:
            self.lowtide.has_warned_of_step = True
            warnings.warn(
                f"training_step of {type(self).__name__} does not call forward, which is what is rewritten, so the "
                "budget is not in force: rewrite the parts that it calls, and put what rewrite returns in their place",
                LowtideWarning,
                stacklevel=2,
            )
        return returned

    return training_step
