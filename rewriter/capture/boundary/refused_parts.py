"""Refuse, by name, parts of a module and arguments of a call for which no step can be captured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ....passes.sources import Source
from ...errors import CaptureError, Unsettled
from .tensor_owners import Owners

_KEEP_OUT = "or keep that part out of the rewritten module"


def refuse_parts(model: torch.nn.Module) -> None:
    """Raise CaptureError for TorchScript, and for parameters and buffers that are not dense."""
    for name, module in model.named_modules():
        if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise CaptureError(
                f"{f'part {name}' if name else 'the module'} is TorchScript ({type(module).__name__}), whose "
                "parameters and calls lowtide cannot follow; put the Python module that it was made of in its place, "
                "or rewrite the parts around it"
            )
    refuse_tensors((f"parameter {name}", tensor) for name, tensor in model.named_parameters())
    refuse_tensors((f"buffer {name}", tensor) for name, tensor in model.named_buffers())


def refuse_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise CaptureError for tensors, under these names, that are sparse, nested or laid out by oneDNN."""
    for name, tensor in tensors:
        if tensor.is_nested:
            raise CaptureError(
                f"{name} is a nested tensor, and lowtide plans dense ones: pad the sequences, {_KEEP_OUT}"
            )
        if tensor.layout is not torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise CaptureError(
                f"{name} is not a dense tensor (its layout is {kind}), and lowtide plans dense ones: the bytes of its "
                f"products depend on its values; pass it as .to_dense(), {_KEEP_OUT}"
            )


def refuse_uninitialized(owners: Owners) -> None:
    """Raise Unsettled for lazy modules that have not run yet."""
    if owners.uninitialized:
        shown = ", ".join(owners.uninitialized[:3])
        raise Unsettled(f"{shown} of lazy modules have no shape before the first batch")


def refuse_overlaps(tensors: Mapping[Source, torch.Tensor], changed: Iterable[Source]) -> None:
    """Raise CaptureError if a tensor that a step changes shares memory with another tensor of its start."""
    places: dict[int, list[tuple[int, int, Source]]] = {}
    for source, tensor in tensors.items():
        if tensor.numel() and not tensor.is_meta:
            steps = zip(tensor.shape, tensor.stride(), strict=True)
            size = (1 + sum((length - 1) * stride for length, stride in steps)) * tensor.element_size()
            places.setdefault(tensor.untyped_storage().data_ptr(), []).append(
                (tensor.data_ptr(), tensor.data_ptr() + size, source)
            )
    changed_sources = set(changed)
    for extents in places.values():
        for start, end, source in extents:
            for other_start, other_end, other in extents if source in changed_sources else ():
                if other is not source and start < other_end and other_start < end:
                    raise CaptureError(
                        f"forward changes {source.kind} {source.name} in place, which shares memory with {other.kind} "
                        f"{other.name}: that would change too, and lowtide follows each separately; give it separate "
                        "memory (.clone())"
                    )
