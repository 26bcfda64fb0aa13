"""The gradients of outputs: the layout of those that arrive, and those that the step must provide in full."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch

from ...passes.sources import Source
from ..errors import LowtideWarning, TapeError
from .tape import Tape


@lru_cache(maxsize=1024)
def expected_layout(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor without data that has the layout of the gradient of an output."""
    return torch.empty_like(torch.empty_strided(shape, stride, dtype=dtype, device="meta"))


def laid_out(gradient: torch.Tensor, like: torch.Tensor, device_type: str) -> torch.Tensor:
    """Return a gradient with the layout of its output, for which kernels were planned."""
    gradient = gradient.resolve_conj().resolve_neg()  # kernels were planned for gradients without lazy flags
    if gradient.stride() == like.stride():
        return gradient
    _warn_of_layout(gradient, like)
    return torch.empty_like(like, device=device_type).copy_(gradient)


def _warn_of_layout(gradient: torch.Tensor, like: torch.Tensor) -> None:
    significant = [dimension for dimension, size in enumerate(like.shape) if size != 1]
    if like.numel() and any(gradient.stride(d) != like.stride(d) for d in significant):
        warnings.warn(
            f"an incoming gradient of shape {tuple(like.shape)} has strides {gradient.stride()}, the output had "
            f"{like.stride()}: it is copied into the output's layout, so sums over it may differ from eager's in the "
            "last bit; compute the loss inside the rewritten module, or make the output contiguous there",
            LowtideWarning,
            stacklevel=2,
        )


def retained_outputs(tape: Tape) -> frozenset[int]:
    """Return the outputs from which others are computed and whose gradient the caller retains.

    The part of the gradient through other outputs stays within the step, which must provide it.
    Raises TapeError for hooks, which would only see the other part.
    """
    retained = set()
    for output in tape.program.outputs.inside:
        tensor = tape.outputs[output]() if tape.outputs else None
        if tensor is None:
            continue
        if tensor._backward_hooks:
            raise TapeError(
                f"a hook waits for the gradient of the output {tape.program.outputs.names[output]!r}, and other "
                "outputs are computed from it: its gradient through those stays within the rewritten step; add the "
                "hook inside of forward, or use retain_grad()"
            )
        if tensor.retains_grad:
            tape.refuse_declined([output])
            retained.add(output)
    return frozenset(retained)


def provide_gradient(tape: Tape, source: Source, gradient: torch.Tensor) -> None:
    """Give an output its full gradient instead of the part that autograd has seen."""
    tensor = tape.outputs[source.index]()
    is_requested = source.index in tape.requested
    if is_requested:
        tape.provided[source.index] = gradient
    if tensor is not None and tensor.retains_grad:
        tensor.grad = gradient.clone() if is_requested else gradient
