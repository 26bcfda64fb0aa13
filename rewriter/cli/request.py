"""Holds requests of the command line, a model by name, a batch, a device and options, as plain data and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from ...solvers.problem.plain_text import printable
from ...solvers.problem.problem_file import shown
from ..errors import ModelError
from ..measure.device_presets import device_names, load_device
from ..models.batches import default_sequence, sample_batch
from ..models.build import build_model
from ..models.resolve import choose_model
from ..text.byte_sizes import format_bytes

_LISTS = ("outputs", "differentiable", "codecs")
_NUMBERS = ("batch", "sequence")
_MOST_ELEMENTS = 2**28  # of a batch, in each of its tensors: a file may not ask for all of a machine's memory
_KINDS = {
    "model": (str,),
    "settings": (dict,),
    "padded": (bool,),
    "fidelity": (str,),
    "error_budget": (int, float),
}


@dataclass(frozen=True)
class Request:
    """A model and the options to plan it. None stands for the default: the preset's if `model` is one.

    Other fields are those of `build_model`, `sample_batch` and `rewrite`.
    device: the name of a preset to plan for, or a device of this machine ("cpu", "cuda").
    costs: by default "measured", and "roofline" for a device that is not here.
    """

    model: str
    settings: dict[str, str] = field(default_factory=dict)
    batch: int | None = None
    sequence: int | None = None
    dtype: str | None = None
    device: str | None = None
    padded: bool = False
    costs: str | None = None
    fidelity: str = "bitwise"
    error_budget: float = 0.01
    outputs: tuple[str, ...] | None = None
    differentiable: tuple[str, ...] | None = None
    codecs: tuple[str, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain texts and numbers, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(payload: Mapping[str, Any]) -> Request:
        """Invert `to_dict`. Raises ValueError for anything that `to_dict` would not have written."""
        known = {entry.name: entry.type for entry in fields(Request)}
        unknown = sorted(set(payload) - set(known))
        if unknown or "model" not in payload:
            raise ValueError(f"made_by names {printable(', '.join(unknown)) or 'no model'}")
        settings = payload.get("settings", {})
        if not isinstance(settings, dict) or not all(isinstance(v, str) for v in settings.values()):
            raise ValueError("the settings of made_by are not texts by name")
        for name, value in payload.items():
            if name in _LISTS and value is not None:
                fits = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
            elif name in _NUMBERS and value is not None:
                fits = type(value) is int and 0 < value <= _MOST_ELEMENTS
            elif value is None:
                fits = name not in _KINDS
            else:
                fits = type(value) in _KINDS.get(name, (str,))
            if not fits:
                raise ValueError(f"{name} of made_by is {shown(value)}")
        if (payload.get("batch") or 1) * (payload.get("sequence") or 1) > _MOST_ELEMENTS:
            raise ValueError(f"made_by asks for a batch of more than {_MOST_ELEMENTS:,} elements")
        lists = {name: tuple(payload[name]) for name in _LISTS if payload.get(name) is not None}
        return Request(**{**payload, **lists})

    @property
    def is_elsewhere(self) -> bool:
        """Return whether the device is only planned for, so that nothing can be run. Raises UnknownDeviceError."""
        return not _is_here(self.device) and load_device(str(self.device)).kind != "cpu"

    @property
    def description(self) -> str:
        """Describe the model, batch and device in a few words."""
        changes = "".join(f" {name}={value}" for name, value in self.settings.items())
        padded = ", padded" if self.padded else ""
        return f"{self.model}{changes}: batch {self.batch} × {self.sequence}, {self.dtype}{padded}, on {self.device}"


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
    def options(self) -> dict[str, Any]:
        """Return the requested keyword arguments of `rewrite` and `plan`."""
        request = self.request
        options = {"fidelity": request.fidelity, "error_budget": request.error_budget, "codecs": request.codecs}
        return {**options, "differentiable": request.differentiable, **self.costing}

    @property
    def costing(self) -> dict[str, Any]:
        """Return those keyword arguments that `profile` takes too."""
        request = self.request
        device = request.device if request.is_elsewhere else None
        return {"outputs": request.outputs, "costs": request.costs, "device": device}

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
    elsewhere = request.is_elsewhere
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
        costs=request.costs or ("roofline" if elsewhere else "measured"),
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
