"""Which outputs a step returns, and which of them receive gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .captured import NothingToDifferentiate
from .errors import CaptureError
from .structure import Structure, flatten


def select_outputs(
    tensors: list[torch.Tensor], structure: Structure, outputs: list[str] | None
) -> tuple[list[torch.Tensor], Structure]:
    """Drops the outputs that are not wanted; in their place stands None."""
    if outputs is None:
        return tensors, structure
    _check_names(outputs, structure, "outputs")
    kept = [
        None if not is_named(name, outputs) else tensor for name, tensor in zip(structure.names, tensors, strict=True)
    ]
    return flatten(structure.unflatten(kept), "output")


def is_named(name: str, wanted: Sequence[str]) -> bool:
    """Whether an output is one of those wanted, or lies inside one."""
    return any(name == w or name.startswith(w + ".") for w in wanted)


def _check_names(wanted: list[str], structure: Structure, what: str) -> None:
    for name in wanted:
        if not any(is_named(have, [name]) for have in structure.names):
            raise CaptureError(
                f"{what} names {name!r}, which the module does not return; it returns {list(structure.names)}"
            )


def differentiable_outputs(
    tensors: list[torch.Tensor], structure: Structure, names: list[str] | None
) -> tuple[int, ...]:
    """The numbers of the outputs that receive gradients: those named, else `loss`, else all that can."""
    able = [i for i, t in enumerate(tensors) if t.requires_grad and (t.is_floating_point() or t.is_complex())]
    if names is not None:
        _check_names(names, structure, "differentiable")
        able = [i for i in able if is_named(structure.names[i], names)]
    elif any(structure.names[i] == "loss" for i in able):
        able = [i for i in able if structure.names[i] == "loss"]
    if not able:
        raise NothingToDifferentiate(
            f"no output requires a gradient (the module returns {list(structure.names)}): there is no backward to "
            "plan; "
            "check that parameters require gradients and that labels are passed"
        )
    return tuple(able)
