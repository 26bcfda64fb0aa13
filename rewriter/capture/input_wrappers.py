"""The functional wrappers that replace parameters, buffers and inputs while a step is captured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from ...passes.sources import Source
from ..errors import CaptureError, Unsettled
from .boundary.pytree import Structure
from .boundary.tensor_owners import Owners
from .operands.operands import lazily_changed
from .recorder import Recorder
from .torch_internals import functional_wrapper, present_value


@dataclass(frozen=True)
class Wrapper:
    """The wrapper of one parameter, buffer or input.

    tensor: the tensor that forward receives.
    leaf: the tensor whose gradient is requested: `tensor` itself, except for inputs that are not leaves.
    initial_grad_fn: the autograd node of `tensor` before forward, if any.
    """

    source: Source
    node: fx.Node
    tensor: torch.Tensor
    leaf: torch.Tensor
    initial_grad_fn: Any = None

    @property
    def is_changed_with_gradient(self) -> bool:
        """Return whether forward has changed it in place, so that gradients arrive through its new value."""
        return self.tensor.grad_fn is not None and self.tensor.grad_fn is not self.initial_grad_fn


class _Entered(torch.autograd.Function):
    """Turns a leaf into a non-leaf, like a computed input, which may be changed in place."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return functional_wrapper(fake, False)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def wrap_all(
    model: torch.nn.Module, inputs: list[torch.Tensor], structure: Structure, recorder: Recorder
) -> dict[int, Wrapper]:
    """Return wrappers of all tensors from which the step starts, by the id of the real tensor, each tensor once."""
    wrappers: dict[int, Wrapper] = {}
    for source, tensor in Owners(model).sources(inputs, structure).items():
        fake = _fake_like(tensor)
        node = recorder.placeholder(source.kind, source.name, fake, tensor)
        leaf = functional_wrapper(fake, tensor.requires_grad)
        if tensor.is_leaf:
            wrappers[id(tensor)] = Wrapper(source, node, leaf, leaf)
            continue
        with torch.enable_grad():
            entered = _Entered.apply(leaf, fake)
        wrappers[id(tensor)] = Wrapper(source, node, entered, leaf, entered.grad_fn)
    return wrappers


def _fake_like(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape, strides and dtype, without data under `tensors_without_data`.

    A tensor on meta becomes one on the CPU.
    """
    device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return lazily_changed(fake, tensor)


def by_place(model: torch.nn.Module, wrappers: Mapping[int, Wrapper]) -> dict[str, torch.Tensor]:
    """Return the wrappers of parameters and buffers by the name of each place where a module holds them."""
    # A module that is registered in two places is listed once: swapped twice, it would not be restored.
    return {
        f"{prefix}.{name}" if prefix else name: wrappers[id(tensor)].tensor
        for prefix, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def with_replaced(wrappers: Mapping[int, Wrapper], replaced: Mapping[torch.Tensor, torch.Tensor]) -> dict[int, Wrapper]:
    """Return the wrappers with the new tensors of those buffers that forward replaced."""
    return {
        key: replace(wrapper, tensor=replaced[wrapper.tensor]) if wrapper.tensor in replaced else wrapper
        for key, wrapper in wrappers.items()
    }


def changed_inputs(wrappers: Iterable[Wrapper]) -> list[Wrapper]:
    """Return the inputs that forward changed in place, so that gradients arrive through their new values.

    Raises Unsettled for a buffer whose shape forward has changed.
    Raises CaptureError for an input whose shape it has changed, and for a buffer changed by a tensor with gradient.
    """
    changed = []
    for wrapper in wrappers:
        _refuse_another_shape(wrapper)
        if not wrapper.is_changed_with_gradient:
            continue
        if wrapper.source.kind != "input":
            raise CaptureError(
                f"forward changes {wrapper.source.kind} {wrapper.source.name} in place by what requires a gradient, so "
                "that one step's backward would reach into the step before; detach it"
            )
        changed.append(wrapper)
    return changed


def _refuse_another_shape(wrapper: Wrapper) -> None:
    before, now = wrapper.node.meta["val"], present_value(wrapper.tensor)
    if before.shape == now.shape:
        return
    source, shapes = wrapper.source, f"from {list(before.shape)} to {list(now.shape)}"
    if source.kind == "input":
        raise CaptureError(f"forward changes the shape of argument {source.name} {shapes}; return it instead")
    raise Unsettled(f"forward changes the shape of {source.kind} {source.name} {shapes}")
