"""The functional stand-ins on which a step is captured, in the place of parameters, buffers and inputs."""

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
    """The stand-in of one parameter, buffer or input.

    tensor: what forward is given. leaf: what its gradient is asked for: `tensor` itself, but for inputs that are no
    leaves. begun: the autograd node that `tensor` comes from before forward, if any.
    """

    source: Source
    node: fx.Node
    tensor: torch.Tensor
    leaf: torch.Tensor
    begun: Any = None

    @property
    def is_changed_with_gradient(self) -> bool:
        """Whether forward has changed it in place so that gradients arrive through its new value."""
        return self.tensor.grad_fn is not None and self.tensor.grad_fn is not self.begun


class _Entered(torch.autograd.Function):
    """Makes of a leaf what is none, as inputs are that were computed: these may be changed in place."""

    @staticmethod
    def forward(ctx: Any, leaf: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return functional_wrapper(fake, False)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient, None


def wrap_all(
    model: torch.nn.Module, inputs: list[torch.Tensor], structure: Structure, recorder: Recorder
) -> dict[int, Wrapper]:
    """Placeholders for all tensors the step starts from, by the id of the real tensor; the same tensor is one."""
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
    """A tensor of the same shape, strides and dtype (under `tensors_without_data`: without data); meta becomes CPU."""
    device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
    fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return lazily_changed(fake, tensor)


def by_place(model: torch.nn.Module, wrappers: Mapping[int, Wrapper]) -> dict[str, torch.Tensor]:
    """The stand-ins of parameters and buffers by the name of each place where they stand."""
    # By module, not by name: a module that stands in two places would be swapped twice and not be put back.
    return {
        f"{prefix}.{name}" if prefix else name: wrappers[id(tensor)].tensor
        for prefix, module in model.named_modules()
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def with_replaced(wrappers: Mapping[int, Wrapper], replaced: Mapping[torch.Tensor, torch.Tensor]) -> dict[int, Wrapper]:
    """The stand-ins with the values that forward put in the place of some: the new values of those buffers."""
    return {
        key: replace(wrapper, tensor=replaced[wrapper.tensor]) if wrapper.tensor in replaced else wrapper
        for key, wrapper in wrappers.items()
    }


def changed_inputs(wrappers: Iterable[Wrapper]) -> list[Wrapper]:
    """The inputs that forward has changed in place so that gradients arrive through their new values.

    Raises Unsettled for a buffer whose shape forward has changed, CaptureError for an input of which it has, and for a
    buffer that was changed by what requires a gradient.
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
