"""Loads device presets: the memory and the speeds of a device, for planning on a machine that does not have it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib import resources

import torch

from ... import configs
from ..errors import LowtideError


class UnknownDeviceError(LowtideError, ValueError):
    """Reports a device preset that does not exist."""


@dataclass(frozen=True)
class DevicePreset:
    """A device as its vendor states it.

    name: the name of the preset.
    kind: the type of the device in torch.
    memory_bytes: the size of its memory.
    flops_per_second: operations per second of dense matrix products, by "fp64", "fp32", "tf32", "bf16" and "fp16".
    memory_bytes_per_second: the bandwidth of its memory.
    host_bytes_per_second: the bandwidth to the host in one direction.
    launch_seconds: the time to launch a kernel.
    allocator_rounding_bytes: torch's allocator hands out multiples of it.
    library_workspace_bytes: the bytes that cuBLAS takes from torch's allocator at the first product and keeps.
    threads: the CPU threads that the numbers hold for; 0 on a GPU.
    torch_names: parts of the names that torch gives such a device.
    sources: the source of the number in each field.
    """

    name: str
    kind: str
    memory_bytes: int
    flops_per_second: dict[str, float]
    memory_bytes_per_second: float
    host_bytes_per_second: float
    launch_seconds: float
    allocator_rounding_bytes: int
    library_workspace_bytes: int
    threads: int
    torch_names: tuple[str, ...]
    sources: dict[str, str]

    def rate(self, dtype: torch.dtype, *, tensor_float_32: bool = False) -> float:
        """Return the operations per second of matrix products of `dtype`; a dtype without a rate counts as fp32."""
        name = _RATE_NAMES.get(dtype, "fp32")
        if name == "fp32" and tensor_float_32:
            name = "tf32"
        return self.flops_per_second[name]

    def rounded(self, size_bytes: int) -> int:
        """Return the bytes that torch's allocator takes for a request of `size_bytes`."""
        rounding = self.allocator_rounding_bytes
        return -(-size_bytes // rounding) * rounding


_RATE_NAMES = {torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}


def device_names() -> list[str]:
    """Return the names of all presets, in alphabetical order."""
    files = resources.files(configs).joinpath("devices").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def load_device(name: str) -> DevicePreset:
    """Return the preset of that name. Raises `UnknownDeviceError`, which lists the known names."""
    if name not in device_names():
        raise UnknownDeviceError(f"no device preset is called {name!r}; choose one of {', '.join(device_names())}")
    text = resources.files(configs).joinpath("devices", f"{name}.toml").read_text(encoding="utf-8")
    fields = tomllib.loads(text)
    fields["torch_names"] = tuple(fields["torch_names"])
    return DevicePreset(name=name, **fields)


def preset_of(device: torch.device) -> DevicePreset:
    """Return the preset that describes a device of this machine.

    Raises `UnknownDeviceError` for a GPU that no preset names; the message asks for one that is close.
    """
    if device.type == "cpu":
        return load_device("cpu")
    if device.type == "cuda" and torch.cuda.is_available():
        device_name = torch.cuda.get_device_name(device)
        for preset in map(load_device, device_names()):
            if any(name in device_name for name in preset.torch_names):
                return preset
    else:
        device_name = str(device)
    raise UnknownDeviceError(
        f"no device preset describes {device_name!r}; name the closest one: {', '.join(device_names())}"
    )
