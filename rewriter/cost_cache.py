"""Keeps measured costs on disk, so that a kernel is run once per machine, torch version and thread count."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..solvers.disk_cache import cache_folder

# Raise it when what is measured changes, so that old numbers are not taken for new ones.
_METHOD = 4


@dataclass(frozen=True)
class Measurement:
    """What is known of one kernel: the seconds of one run and the bytes at its fullest moment, or None."""

    seconds: float | None = None
    working_bytes: int | None = None


@dataclass
class CostCache:
    """The measurements of one environment, by signature; in memory until `save`."""

    path: Path
    environment: dict[str, str]
    measurements: dict[str, Measurement] = field(default_factory=dict)

    @classmethod
    def load(cls, device: torch.device) -> CostCache:
        """The cache for a device in this process's situation; empty when none can be read."""
        environment = _environment(device)
        digest = hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:16]
        path = cache_folder() / f"costs-{device.type}-{digest}.json"
        return cls(path, environment, _read(path))

    def add(self, signature: str, measurement: Measurement) -> None:
        """Records a measurement; what it leaves open stays as it was."""
        known = self.measurements.get(signature, Measurement())
        seconds = known.seconds if measurement.seconds is None else measurement.seconds
        working_bytes = known.working_bytes if measurement.working_bytes is None else measurement.working_bytes
        self.measurements[signature] = Measurement(seconds, working_bytes)

    def save(self) -> None:
        """Writes the cache, together with what another process has written in the meantime.

        A folder that cannot be written to is no error: the costs are measured again next time.
        """
        kernels = {
            name: [entry.seconds, entry.working_bytes]
            for name, entry in sorted({**_read(self.path), **self.measurements}.items())
        }
        text = json.dumps({"environment": self.environment, "kernels": kernels}, indent=0)
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".costs-", suffix=".json")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                Path(temporary).replace(self.path)
            except OSError:
                Path(temporary).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Measurement]:
    try:
        kernels = json.loads(path.read_text(encoding="utf-8"))["kernels"]
        return {name: _measurement(*entry) for name, entry in kernels.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}  # missing, cut short or not ours: measured again and written anew


def _measurement(seconds: float | None, working_bytes: int | None) -> Measurement:
    return Measurement(
        None if seconds is None else float(seconds), None if working_bytes is None else int(working_bytes)
    )


def _environment(device: torch.device) -> dict[str, str]:
    """Everything beside the signature on which a kernel's time and scratch depend."""
    environment = {
        "method": str(_METHOD),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "processor": _processor_name(),
        "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        "float32_precision": torch.get_float32_matmul_precision(),
        "default_dtype": str(torch.get_default_dtype()),
    }
    if device.type == "cuda":
        environment["device"] = torch.cuda.get_device_name(device)
        environment["cuda"] = str(torch.version.cuda)
        environment["cudnn_tf32"] = str(torch.backends.cudnn.allow_tf32)
        environment["cudnn_benchmark"] = str(torch.backends.cudnn.benchmark)
    else:
        environment["instructions"] = torch.backends.cpu.get_cpu_capability()
        environment["mkldnn"] = str(torch.backends.mkldnn.is_available())
    return environment


def _processor_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
