"""Leave caches of keys and values out of a step: no training step reads them, and they would take memory."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from ...errors import StructureError

LEFT_OUT = "use_cache=False: no cache of keys and values is made or returned"
_FLAG = "use_cache"
_NAMES = ("past_key_values", "cache_params")  # names of outputs and arguments that are caches of any class


def bind(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the keyword arguments of the step, without a cache, and notes on changes to them.

    Raises StructureError for an argument that is a cache.
    """
    for name, value in (*enumerate(args), *kwargs.items()):
        if is_cache(str(name), value):
            raise StructureError(
                f"argument {name} is a {type(value).__qualname__}: a rewritten step neither reads nor extends a cache "
                "of keys and values; pass the whole sequence without one, or call the original module"
            )
    if not kwargs.get(_FLAG) and (_FLAG in kwargs or not _is_on_by_default(model.forward, len(args))):
        return kwargs, ()
    return {**kwargs, _FLAG: False}, (LEFT_OUT,)


def _is_on_by_default(forward: Callable[..., Any], given: int) -> bool:
    """Return whether a forward makes a cache by default, with a number of positional arguments given."""
    try:
        return _place_if_on(getattr(forward, "__func__", forward)) >= given + hasattr(forward, "__func__")
    except TypeError:  # forward cannot be hashed
        return False


@lru_cache(maxsize=128)
def _place_if_on(forward: Callable[..., Any]) -> int:
    """Return the place of `use_cache` among the parameters of a forward if it is on by default; else -1."""
    try:
        parameters = inspect.signature(forward).parameters
    except (TypeError, ValueError):
        return -1
    flag = parameters.get(_FLAG)
    return list(parameters).index(_FLAG) if flag is not None and flag.default is True else -1


def is_cache(name: str, value: Any) -> bool:
    """Return whether an argument or output of this name is an object that caches keys and values, or states."""
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str, list, tuple, dict)):
        return False
    return name in _NAMES or type(value).__name__.endswith("Cache")


def without_caches(returned: Any, notes: list[str] | None = None, name: str = "") -> Any:
    """Replace each cache in a module's outputs by None, and add a note if there is one."""
    if is_cache(name, returned):
        if notes is not None and LEFT_OUT not in notes:
            notes.append(LEFT_OUT)
        return None
    if isinstance(returned, dict):
        kept = {key: without_caches(value, notes, str(key)) for key, value in returned.items()}
        if all(kept[key] is value for key, value in returned.items()):
            return returned
        if dataclasses.is_dataclass(returned) or type(returned) is dict:
            return type(returned)(**kept) if dataclasses.is_dataclass(returned) else kept
        return type(returned)(kept.items())
    if isinstance(returned, (list, tuple)):
        names = getattr(returned, "_fields", None) or [""] * len(returned)
        parts = [without_caches(value, notes, part) for part, value in zip(names, returned, strict=True)]
        if all(part is value for part, value in zip(parts, returned, strict=True)):
            return returned
        return type(returned)(*parts) if hasattr(returned, "_fields") else type(returned)(parts)
    return returned
