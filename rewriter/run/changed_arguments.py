"""Handle arguments that forward changes in place by tensors with gradients: they become outputs in autograd's graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...passes.sources import Source
from ..capture.boundary.outputs import Outputs
from ..emit.program import Program
from ..errors import TapeError


def alone(program: Program, tensors: Mapping[Source, torch.Tensor]) -> Mapping[Source, torch.Tensor]:
    """Return the tensors of a step with changed inputs detached, so that the step does not hold its own outputs."""
    changed = set(program.outputs.changed)
    if not changed:
        return tensors
    return {source: tensor.detach() if source in changed else tensor for source, tensor in tensors.items()}


def refuse_changes(outputs: Outputs, tensors: Sequence[torch.Tensor]) -> None:
    """Raise RuntimeError or TapeError for inputs that autograd does not let forward change."""
    for source, tensor in zip(outputs.changed, tensors, strict=True):
        if tensor.is_leaf and tensor.requires_grad:
            raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
        if tensor._base is not None:
            raise TapeError(
                f"forward changes argument {source.name} in place, which is a view of another tensor: gradients "
                "through that tensor's new value would be lost; pass a copy of the part (.clone())"
            )
