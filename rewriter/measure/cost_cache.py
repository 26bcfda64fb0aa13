"""Keeps measured costs on disk, so that a kernel is run once per machine, torch version and state of its backends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from dataclasses import dataclass, field
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from ...storage.bounded_json import read_json
from ...storage.cache_folder import cache_folder
from ...storage.private_files import read_private, remove_oldest, write_private
from ..capture.call.backend_state import backend_state
from ..capture.operands.layouts_seen import parse_layouts

# Raise it when what is measured changes, so that old numbers are not taken for new ones.
_METHOD = 6
# The beginning of a file, followed by a digest of everything after the digest.
_OPENING, _AFTER_DIGEST = b'{"digest": "', b'", '
_DIGEST_LETTERS = 64
_MOST_FILE_BYTES = 32 * 2**20
_MOST_KERNELS = 50_000
_MOST_FILES = 64
_MOST_PARTS = 40 * _MOST_KERNELS  # of JSON; a signature has commas too
# No kernel takes as much time or memory.
_MOST_SECONDS = 3600.0
_MOST_WORKING_BYTES = 2**50
# Variables by which the libraries under torch choose kernels, read when a process starts.
_VARIABLES = (
    *("ATEN_", "TORCH_", "PYTORCH_", "ONEDNN_", "DNNL_", "MKL_", "OMP_", "KMP_", "GOMP_", "OPENBLAS_", "BLIS_"),
    *("CUBLAS", "CUDNN_", "CUDA_", "NVIDIA_", "NCCL_", "TRITON_", "MALLOC_", "LD_PRELOAD"),
)


@dataclass(frozen=True)
class Measurement:
    """The measured costs of one kernel; None stands for a number that is unknown.

    seconds: the time of one run.
    working_bytes: the bytes at its fullest moment.
    layouts: the layouts of its results in memory (`layouts_seen.format_layouts`).
    """

    seconds: float | None = None
    working_bytes: int | None = None
    layouts: str | None = None

    @property
    def is_seen(self) -> bool:
        """Return whether the kernel was run while its memory was watched."""
        return self.working_bytes is not None and self.layouts is not None


@dataclass
class CostCache:
    """The measurements of one environment, by signature; they stay in memory until `save`.

    device: the device measured on.
    path: the file, or None where nothing is kept.
    environment: everything apart from the signature that the costs depend on.
    measurements: the measurements by signature.
    """

    device: torch.device
    path: Path | None
    environment: dict[str, str]
    measurements: dict[str, Measurement] = field(default_factory=dict)

    @classmethod
    def load(cls, device: torch.device) -> CostCache:
        """Return the cache for a device in this process's environment; it is empty when none can be read."""
        environment = _environment(device)
        digest = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:16]
        folder = cache_folder()
        path = folder and folder / f"costs-{device.type}-{digest}.json"
        return cls(device, path, environment, _read(path, environment))

    def add(self, signature: str, measurement: Measurement) -> None:
        """Record a measurement. Numbers that it leaves open stay unchanged."""
        previous = self.measurements.pop(signature, Measurement())
        seconds = previous.seconds if measurement.seconds is None else measurement.seconds
        working_bytes = previous.working_bytes if measurement.working_bytes is None else measurement.working_bytes
        layouts = previous.layouts if measurement.layouts is None else measurement.layouts
        self.measurements[signature] = Measurement(seconds, working_bytes, layouts)  # the latest come last

    def save(self) -> None:
        """Write the cache, together with the measurements that another process has written in the meantime.

        A folder that cannot be written to raises no error: the costs are measured again next time. Nothing is written
            if the environment has changed since the cache was loaded, for example because C does not compile.
        """
        if self.path is None or self.environment != _environment(self.device):
            return
        others = {
            name: measurement
            for name, measurement in _read(self.path, self.environment).items()
            if name not in self.measurements
        }
        kernels = {
            name: [measurement.seconds, measurement.working_bytes, measurement.layouts]
            for name, measurement in (others | self.measurements).items()
        }
        content = _written(self.environment, kernels)
        with contextlib.suppress(OSError):
            write_private(self.path, content)
            remove_oldest(self.path.parent, self.path.suffix, _MOST_FILES * _MOST_FILE_BYTES, _MOST_FILES)


def _written(environment: dict[str, str], kernels: dict[str, list[Any]]) -> bytes:
    """Return a cache as the content of a file, without the oldest measurements if it would be too large."""
    names = [*kernels][-_MOST_KERNELS:]
    while True:
        payload = {"environment": environment, "kernels": {name: kernels[name] for name in names}}
        rest = json.dumps(payload).removeprefix("{").encode()
        if len(rest) < _MOST_FILE_BYTES - 2 * _DIGEST_LETTERS or not names:
            return b"".join((_OPENING, hashlib.sha256(rest).hexdigest().encode(), _AFTER_DIGEST, rest))
        names = names[-(len(names) // 2) :] if len(names) > 1 else []


def _read(path: Path | None, environment: dict[str, str]) -> dict[str, Measurement]:
    """Return the measurements in a file; none if it is missing, damaged, foreign, or of another environment."""
    if path is None:
        return {}
    try:
        content = read_private(path, _MOST_FILE_BYTES)
        start = len(_OPENING) + _DIGEST_LETTERS + len(_AFTER_DIGEST)
        digest = hashlib.sha256(content[start:]).hexdigest().encode()
        if content[:start] != b"".join((_OPENING, digest, _AFTER_DIGEST)):
            return {}
        payload = read_json(b"{" + content[start:], _MOST_PARTS)
        if payload["environment"] != environment:
            return {}
        entries = ((name, _measurement(entry)) for name, entry in payload["kernels"].items())
        return {name: measurement for name, measurement in entries if measurement is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _measurement(entry: object) -> Measurement | None:
    """Return a file's measurement of a kernel; None if it is impossible, so that the kernel is measured again."""
    if not isinstance(entry, list) or len(entry) != 3:
        return None
    seconds, working_bytes, layouts = entry
    if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds <= _MOST_SECONDS):
        return None
    if working_bytes is not None and not (type(working_bytes) is int and 0 <= working_bytes <= _MOST_WORKING_BYTES):
        return None
    if seconds is not None and not isfinite(seconds):
        return None
    if layouts is not None:
        try:
            parse_layouts(layouts)
        except (ValueError, TypeError):
            return None
    return Measurement(None if seconds is None else float(seconds), working_bytes, layouts)


def _environment(device: torch.device) -> dict[str, str]:
    """Return everything apart from the signature that a kernel's time and scratch depend on."""
    environment = {
        "method": str(_METHOD),
        "torch": f"{torch.__version__} {torch.version.git_version}",
        "processor": _processor_name(),
        "cores": str(_cores()),
        **{name: os.environ[name] for name in sorted(os.environ) if name.startswith(_VARIABLES)},
        **{name: repr(value) for name, value in backend_state(device.type)},
    }
    if device.type == "cuda":
        environment["device"] = torch.cuda.get_device_name(device)
        environment["cuda"] = str(torch.version.cuda)
        with contextlib.suppress(metadata.PackageNotFoundError):
            environment["triton"] = metadata.version("triton")
    return environment


def _cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
