"""Where the kernels are registered, so that FX, capture and `torch.compile` see through them: `torch.ops.lowtide`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("lowtide", "DEF")


def define(
    schema: str,
    run: Callable[..., Any],
    shapes: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup: Callable[..., Any] | None = None,
    random: bool = False,
) -> Any:
    """Registers an operation and returns it.

    schema: as in `native_functions.yaml`. run: computes it on any device. shapes: the same on tensors without data.
    backward, setup: as for `torch.library.register_autograd`; without them it has no gradient. random: it draws from
    the default generator of its device.
    """
    name = schema.partition("(")[0]
    tags = (torch.Tag.nondeterministic_seeded,) if random else ()
    LIBRARY.define(schema, tags=(*tags, torch.Tag.pt2_compliant_tag))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lowtide::{name}", shapes, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(f"lowtide::{name}", backward, setup_context=setup, lib=LIBRARY)
    return getattr(torch.ops.lowtide, name).default
