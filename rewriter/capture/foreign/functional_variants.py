"""Replace operations that change their arguments by functional variants, which return the new values.

before: mine::update(Tensor(a!) mean, Tensor x) -> Tensor
after:  lowtide_functional::mine_update(Tensor, Tensor) -> (Tensor, Tensor), whose second result is the new mean

A captured step follows changes only by torch's own operations, for example the later copy into `mean`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ...errors import CaptureError
from ...text.source_text import identifier

_NAMESPACE = "lowtide_functional"


def call_changing(called: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any], where: str) -> Any:
    """Call the functional variant of an operation that changes its arguments, and copy the new values into them.

    Raises CaptureError if an argument requires a gradient: the formula of the gradient is unknown.
    """
    given = _in_order(called, args, kwargs)
    if torch.is_grad_enabled() and any(map(_requires_grad, given)):
        raise CaptureError(
            f"{called._schema.name} changes its arguments and is given tensors that require a gradient, {where}: call "
            "it under torch.no_grad(), or let it return a new tensor"
        )
    changed = _changed(called)
    results = _as_list(_functional_variant(called)(*given))
    for place, value in zip(changed, results[-len(changed) :], strict=True):
        given[place].copy_(value)
    returned = results[: -len(changed)]
    return None if not returned else returned[0] if len(returned) == 1 else tuple(returned)


def _changed(called: torch._ops.OpOverload) -> list[int]:
    """Return the places of the arguments that are written to."""
    arguments = enumerate(called._schema.arguments)
    return [place for place, argument in arguments if argument.alias_info is not None and argument.alias_info.is_write]


def _in_order(called: torch._ops.OpOverload, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    """Return all arguments in the order of the schema, with defaults."""
    left = called._schema.arguments[len(args) :]
    return [*args, *(kwargs.get(argument.name, argument.default_value) for argument in left)]


def _as_list(results: Any) -> list[Any]:
    return [] if results is None else list(results) if isinstance(results, (list, tuple)) else [results]


def _requires_grad(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_requires_grad, value))
    return isinstance(value, torch.Tensor) and value.requires_grad


@cache
def _functional_variant(called: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """Return the functional variant of an operation, registered with torch at its first use."""
    schema, changed = called._schema, _changed(called)
    overload = f"_{called._overloadname}" if called._overloadname != "default" else ""
    name = _free_name(identifier(schema.name + overload))
    types: Any = [[argument.real_type for argument in group] for group in (schema.arguments, schema.returns)]
    arguments = ", ".join(f"{type_.str()} argument_{place}" for place, type_ in enumerate(types[0]))
    returned = ", ".join([*(type_.str() for type_ in types[1]), *("Tensor" for _ in changed)])
    keyword_only = [argument.name if argument.kwarg_only else "" for argument in schema.arguments]

    def run(*given: Any) -> Any:
        copies = [value.clone() if place in changed else value for place, value in enumerate(given)]
        positional = [value for name, value in zip(keyword_only, copies, strict=True) if not name]
        named = {name: value for name, value in zip(keyword_only, copies, strict=True) if name}
        results = [*_as_list(called(*positional, **named)), *(copies[place] for place in changed)]
        return results[0] if len(results) == 1 else tuple(results)

    library = _library()
    library.define(f"{name}({arguments}) -> ({returned})", tags=called.tags)
    library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", run, lib=library)
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def _free_name(name: str) -> str:
    """Return the name, with a number appended if the functional variant of another operation has it already."""
    known = set(dir(getattr(torch.ops, _NAMESPACE)))
    return next(free for free in (name, *(f"{name}_{i}" for i in range(1, 10_000))) if free not in known)


@cache
def _library() -> torch.library.Library:
    return torch.library.Library(_NAMESPACE, "FRAGMENT")
