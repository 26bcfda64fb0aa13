"""Holds requests of the command line, a model by name, a batch, a device and options, as plain data and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Any

import torch

from ...solvers.problem.plain_text import printable
from ...solvers.problem.problem_file import shown
from ..errors import ModelError
from ..measure.device_presets import device_names, load_device
from ..models.batches import default_sequence, sample_batch
from ..models.build import build_model
from ..models.resolve import choose_model
from ..plan.options import OptionArguments, Options
from ..text.byte_sizes import format_bytes

_OF_OPTIONS = tuple(option.name for option in fields(Options) if option.name != "device")
_NUMBERS = ("batch", "sequence")
_MOST_ELEMENTS = 2**28  # of a batch, in each of its tensors: a file may not ask for all of a machine's memory


@dataclass(frozen=True)
class Request:
    """A model, its batch and the options to plan it. None stands for the default: the preset's if `model` is one.

    model, settings: the model by name, and changes to its configuration.
    batch, sequence, padded: the rows, the tokens of each, and whether they have different lengths (`sample_batch`).
    dtype: the dtype of the parameters.
    device: the name of a preset to plan for, or a device of this machine ("cpu", "cuda").
    options: the options of `rewrite`, with `device` as its own.
    """

    model: str
    settings: dict[str, str] = field(default_factory=dict)
    batch: int | None = None
    sequence: int | None = None
    dtype: str | None = None
    device: str | None = None
    padded: bool = False
    options: Options = field(default_factory=Options)

    @staticmethod
    def of(model: str, arguments: Mapping[str, Any], device: str | None = None, **batch: Any) -> Request:
        """Return the request for a model on a device. Raises UnknownDeviceError, ValueError.

        arguments: the options of `rewrite` by name; costs are "roofline" for a device that is not here, if not given.
        batch: the other fields.
        """
        preset = planned_device(device)
        costs = {"costs": "roofline"} if preset is not None else {}
        return Request(
            model, device=device, **batch, options=Options.of("a request", costs | dict(arguments) | {"device": preset})
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain texts and numbers, for JSON; an unlimited time is left out."""
        own = {entry.name: getattr(self, entry.name) for entry in fields(Request) if entry.name != "options"}
        names = (name for name in _OF_OPTIONS if name != "time_limit" or self.options.time_limit < inf)
        return own | {name: getattr(self.options, name) for name in names}

    @staticmethod
    def from_dict(payload: Mapping[str, Any]) -> Request:
        """Invert `to_dict`. Raises ValueError, TypeError for anything that `to_dict` would not have written."""
        own = {name: value for name, value in payload.items() if name not in _OF_OPTIONS}
        unknown = sorted(set(own) - {entry.name for entry in fields(Request)} | own.keys() & {"options"})
        if unknown or "model" not in payload:
            raise ValueError(f"made_by names {printable(', '.join(unknown)) or 'no model'}")
        settings = own.get("settings", {})
        if not isinstance(settings, dict) or not all(isinstance(v, str) for v in settings.values()):
            raise ValueError("the settings of made_by are not texts by name")
        for name, value in own.items():
            if not _fits(name, value):
                raise ValueError(f"{name} of made_by is {shown(value)}")
        if (own.get("batch") or 1) * (own.get("sequence") or 1) > _MOST_ELEMENTS:
            raise ValueError(f"made_by asks for a batch of more than {_MOST_ELEMENTS:,} elements")
        return Request.of(arguments={name: payload[name] for name in _OF_OPTIONS if name in payload}, **own)

    @property
    def description(self) -> str:
        """Describe the model, batch and device in a few words."""
        changes = "".join(f" {name}={value}" for name, value in self.settings.items())
        padded = ", padded" if self.padded else ""
        return f"{self.model}{changes}: batch {self.batch} × {self.sequence}, {self.dtype}{padded}, on {self.device}"


def planned_device(device: str | None) -> str | None:
    """Return the preset that is only planned for, since it is not of this machine's kind; None for a device here.

    Raises UnknownDeviceError.
    """
    return None if _is_here(device) or load_device(str(device)).kind == "cpu" else device


def _fits(name: str, value: Any) -> bool:
    """Return whether a file may hold a value in a field of a request."""
    if name in _NUMBERS and value is not None:
        return type(value) is int and 0 < value <= _MOST_ELEMENTS
    if name in ("settings", "padded"):
        return type(value) is (dict if name == "settings" else bool)
    return type(value) is str or (value is None and name != "model")


@dataclass(frozen=True)
class Subject:
    """A built model with its batch.

    request: the request, with the defaults filled in.
    model: the model.
    batch: the keyword arguments of its forward.
    """

    request: Request
    model: torch.nn.Module
    batch: dict[str, torch.Tensor]

    @property
    def options(self) -> OptionArguments:
        """The requested keyword arguments of `rewrite`, `plan`, `sweep` and `profile`."""
        return self.request.options.arguments()

    @property
    def description(self) -> str:
        """Describe the model, batch and device in a few words."""
        return self.request.description


def build(request: Request) -> Subject:
    """Build the model with random weights and its batch; on meta if the device is only planned for.

    Raises ModelError, and UnknownDeviceError for a device that is neither here nor a preset.
    """
    if request.batch is not None and request.batch < 1:
        raise ModelError(f"--batch {request.batch} is below 1")
    elsewhere = request.options.device is not None
    choice = choose_model(request.model, request.settings)
    device, batch = request.device or "cpu", request.batch or choice.batch or 1
    model_options: dict[str, Any] = {"overrides": request.settings, "dtype": request.dtype or choice.dtype}
    model = build_model(request.model, **model_options, meta=True)
    if not elsewhere:
        _refuse_too_large(request, model)
        model = build_model(request.model, **model_options, device=device if _is_here(device) else "cpu")
    sequence = request.sequence or choice.sequence or default_sequence(model)
    completed = replace(
        request,
        batch=batch,
        sequence=sequence,
        dtype=model_options["dtype"],
        device=device,
    )
    return Subject(completed, model, sample_batch(model, batch, sequence, padded=request.padded))


def _is_here(device: str | None) -> bool:
    """Return whether a device is named as torch names those of this machine, rather than by a preset."""
    return device is None or device.partition(":")[0] in ("cpu", "cuda")


def _refuse_too_large(request: Request, model: torch.nn.Module) -> None:
    """Raise ModelError if the weights alone would fill this machine, before they do."""
    weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    host_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if weights_bytes > 0.9 * host_bytes:
        presets = ", ".join(name for name in device_names() if load_device(name).kind != "cpu")
        raise ModelError(
            f"the parameters of {request.model} take {format_bytes(weights_bytes)}, this machine has "
            f"{format_bytes(host_bytes)}; plan without allocating them by --device with one of {presets}"
        )
