"""What identifies a call: a plan is made for one kind of call and serves all calls like it."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from .refused_parts import refuse_tensors
from .sources import Owners
from .structure import Structure, flatten

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class Call:
    """The tensors of one call, and the key of its kind.

    key: shapes, strides, dtypes, devices and aliasing of the tensors, scalar arguments, the modules with their modes,
    what requires gradients, autocast, threads, configuration flags. grad_key: which parameters have a `.grad`.
    """

    inputs: tuple[torch.Tensor, ...]
    structure: Structure
    key: Hashable
    grad_key: Hashable


def describe(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any], owners: Owners) -> Call:
    """Describes a call of a module. Raises StructureError for arguments that cannot be looked into."""
    kwargs, _ = bind(model, args, kwargs)
    inputs, structure = flatten((args, kwargs), "argument")
    refuse_tensors((f"argument {name}", tensor) for name, tensor in zip(structure.names, inputs, strict=True))
    first: dict[int, int] = {}
    places = tuple(first.setdefault(id(t), i) for i, t in enumerate(inputs))
    device_type = owners.device_type
    key = (
        structure.key,
        tuple((*_tensor_key(t), t.is_leaf) for t in inputs),
        places,
        owners.modules_key,
        tuple(_tensor_key(t) for t in owners.parameters()),
        tuple(_tensor_key(t) for t in owners.buffers()),
        torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        _attention_kernels(),
        _flags(getattr(model, "config", None)),
    )
    leaves = (*owners.parameters(), *(t for t in inputs if t.requires_grad and t.is_leaf))
    return Call(tuple(inputs), structure, key, tuple(t.grad is not None for t in leaves))


def bind(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keyword arguments of the step, and notes on what was changed in them.

    A cache of keys and values serves no training step and is switched off.
    """
    config = getattr(model, "config", None)
    if not getattr(config, "use_cache", False) or "use_cache" in kwargs:
        return kwargs, ()
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" not in parameters or list(parameters).index("use_cache") < len(args):
        return kwargs, ()
    return {**kwargs, "use_cache": False}, ("use_cache=False: no cache of keys and values is made or returned",)


def modules_key(model: torch.nn.Module) -> Hashable:
    """The classes and modes of all modules, their hooks, and which of them hold which tensors (ties included)."""
    places: dict[int, int] = {}
    return tuple(
        (
            type(module),
            module.training,
            id(vars(module).get("forward")),
            len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks),
            *(
                (name, places.setdefault(id(tensor), len(places)))
                for held in (module._parameters, module._buffers)
                for name, tensor in held.items()
                if tensor is not None
            ),
        )
        for module in model.modules()
    )


def _attention_kernels() -> Hashable:
    """Which kernels fused attention may choose among."""
    chosen = torch.backends.cuda
    return (
        chosen.flash_sdp_enabled(),
        chosen.mem_efficient_sdp_enabled(),
        chosen.math_sdp_enabled(),
        chosen.cudnn_sdp_enabled(),
    )


def _tensor_key(tensor: torch.Tensor) -> Hashable:
    lazy = tensor.is_conj(), tensor.is_neg()
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad, lazy)


def _flags(config: Any) -> Hashable:
    """The plain settings of a configuration, those of the configurations in it included."""
    if not hasattr(config, "__dict__"):
        return None
    return tuple(
        (
            name,
            value if isinstance(value, _PLAIN) else repr(value) if isinstance(value, (list, dict)) else _flags(value),
        )
        for name, value in vars(config).items()
    )
