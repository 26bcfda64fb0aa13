"""Where the kernels are registered, so that FX, capture and `torch.compile` see through them: `torch.ops.lowtide`."""

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
    """Registers an operation and returns it.

    schema: as in `native_functions.yaml`. run: computes it on any device. shapes: the same on tensors without data.
    backward, setup: as for `torch.library.register_autograd`; without them it has no gradient. random: it draws from
    the default generator of its device. prepare: does what is done once per process, such as to try a kernel against
    torch's own or to make tables, and would else be part of the first run; called with those arguments of the operation
    by name that are no tensors, any number of times.
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
    """Whether an operation is one of these kernels."""
    return getattr(operation, "namespace", None) == LIBRARY.ns


def prepare(operation: object, constants: Mapping[str, object]) -> None:
    """Does now what the first run of an operation would do besides. constants: its arguments that are no tensors."""
    preparation = _PREPARATIONS.get(operation)
    if preparation is not None:
        preparation(**constants)
