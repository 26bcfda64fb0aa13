"""Registers the kernels as `torch.ops.lowtide`, so that FX, capture and `torch.compile` handle them as operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

LIBRARY = torch.library.Library("lowtide", "DEF")
_PREPARATIONS: dict[Any, Callable[..., object]] = {}


def define(
    schema: str,
    run: Callable[..., Any],
    shapes: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup: Callable[..., Any] | None = None,
    random: bool = False,
    prepare: Callable[..., object] | None = None,
) -> Any:
    """Register an operation and return it.

    schema: as in `native_functions.yaml`.
    run: computes the operation on any device.
    shapes: the same on tensors without data.
    backward, setup: as for `torch.library.register_autograd`; without them the operation has no gradient.
    random: whether it draws from the default generator of its device.
    prepare: does what is done once per process and would otherwise be part of the first run. Examples are to compare a
        kernel with torch's own, or to make tables. It is called any number of times, with the operation's arguments
        that are not tensors, by name.
    """
    name = schema.partition("(")[0]
    tags = (torch.Tag.nondeterministic_seeded,) if random else ()
    LIBRARY.define(schema, tags=(*tags, torch.Tag.pt2_compliant_tag))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lowtide::{name}", shapes, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"lowtide::{name}", backward, setup_context=setup, lib=LIBRARY)
    operation = getattr(torch.ops.lowtide, name).default
    if prepare is not None:
        _PREPARATIONS[operation] = prepare
    return operation


def is_own(operation: object) -> bool:
    """Return whether an operation is one of these kernels."""
    return getattr(operation, "namespace", None) == LIBRARY.ns


def prepare(operation: object, constants: Mapping[str, object]) -> None:
    """Do in advance what an operation would do once in its first run.

    constants: its arguments that are not tensors.
    """
    preparation = _PREPARATIONS.get(operation)
    if preparation is not None:
        preparation(**constants)
