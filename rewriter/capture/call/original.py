"""The module that a rewritten one was made of: its class, its forward, and itself under its own class."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from .identity import Same
from .inner_hooks import HOOKS

OWN_FORWARD = "_lowtide_forward"  # the attribute of a rewritten module with the forward that its instance had before
REWRITTEN = "_lowtide_rewritten"  # the attribute of a view with its rewritten module
ORIGINAL = "_lowtide_original"  # the attribute of a rewritten module's class with the original class


def original_class(model: Any) -> type:
    """Return the class from which a rewritten module was made; for any other module its class."""
    return getattr(type(model), ORIGINAL, type(model))


def original_forward(model: Any) -> Callable[..., Any]:
    """Return the forward that a rewritten module had before."""
    own = vars(model).get(OWN_FORWARD)
    return own if own is not None else original_class(model).forward.__get__(model)


def original_view(
    model: Any, forward: Callable[[torch.nn.Module], Callable[..., Any]] | None = None
) -> torch.nn.Module:
    """Return the same module under its original class: it shares all parts, and its own hooks do not run.

    forward: returns, for the view, the forward that was set on the rewritten module.
    """
    view = object.__new__(original_class(model))
    left_out = ("lowtide", "forward", "_compiled_call_impl", OWN_FORWARD, *HOOKS)
    attributes = {key: value for key, value in vars(model).items() if key not in left_out}
    view.__dict__.update(attributes, **{name: OrderedDict() for name in HOOKS})
    if OWN_FORWARD in vars(model):
        view.__dict__["forward"] = vars(model)[OWN_FORWARD]
    if forward is not None:
        view.__dict__["forward"] = forward(view)
    view.__dict__[REWRITTEN] = Same(model)  # wrapped, so that it is not registered as a submodule
    return view


def rewritten_of(view: torch.nn.Module) -> Any:
    """Return the rewritten module of a view; None for any other module."""
    held = vars(view).get(REWRITTEN)
    return held and held.held
