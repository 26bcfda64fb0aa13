"""Finds the costs of each kernel of a captured step: its seconds, its memory while it runs, its arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from ...passes.calls import call_signature
from ...passes.foreign_calls import is_foreign, runs_alone
from ..capture.operands.operands import tensor_operands, tensors_in, value_of
from ..errors import LowtideError
from .cost_cache import CostCache, Measurement
from .device_presets import DevicePreset, load_device, preset_of
from .flops import count_flops
from .roofline import bounding_working_bytes, estimated_working_bytes, is_view, moved_bytes, roofline_seconds
from .time_kernels import MeasureWarning, prepare_kernels, run_kernels

__all__ = ["Cost", "MeasureError", "MeasureWarning", "measure_costs"]

NOMINAL_FLOPS_PER_SECOND = 1e12
"""The speed at which `costs="flops"` turns operations into seconds."""
_BYTES_MOVED_PER_OPERATION = 1000
"""The bytes moved that weigh as much as one operation, so that of schedules with equal operations the one that moves
the fewest bytes wins."""


class MeasureError(LowtideError, ValueError):
    """Reports costs that cannot be found in the requested manner."""


@dataclass(frozen=True)
class Cost:
    """The cost of one run of a kernel.

    seconds: the time of the run.
    working_bytes: the most bytes allocated at any moment, outputs included.
    flops: the floating-point operations.
    layouts: the layouts of its results in memory (`layouts_seen.format_layouts`), or None if the kernel was not run.
    """

    seconds: float
    working_bytes: int
    flops: int
    layouts: str | None = None


def measure_costs(
    nodes: Iterable[fx.Node],
    device: torch.device | str,
    costs: str = "measured",
    preset: str | DevicePreset | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    untimed: Iterable[fx.Node] = (),
) -> dict[str, Cost]:
    """Return the cost of every call among `nodes`, by `call_signature`. Each distinct call is run once and then cached.

    costs: "measured" runs and times each kernel on `device`, with this process's number of threads, and takes the least
        of several runs. "roofline" estimates seconds from `preset`, by default that of `device`. "flops" takes 1e12
        operations per second, and next to nothing for the bytes a kernel moves. Roofline and flops give the same
        seconds every time.
    preset: the device preset, or its name.
    progress: a function called with (kernels done, kernels to run, name).
    untimed: further calls whose memory and layouts are needed, but no measured seconds.

    Memory is measured if `device` belongs to this machine and the tensors are not on `meta`; otherwise it is estimated
    from shapes.

    Raises `MeasureError` if `costs` is unknown, or if "measured" is requested for a device that is not here.
    Warns with `MeasureWarning` in three cases. A kernel that cannot be run alone has its memory bounded from above. A
    kernel with tensors on `meta` gets its seconds by roofline. A running profiler prevents measuring memory.
    """
    device = torch.device(device)
    if costs not in ("measured", "roofline", "flops"):
        raise MeasureError(f"costs={costs!r} is unknown; choose 'measured', 'roofline' or 'flops'")
    distinct: dict[str, fx.Node] = {}
    for node in nodes:
        if node.op == "call_function":
            distinct.setdefault(call_signature(node), node)
    timed = frozenset(distinct)
    for node in untimed:
        if node.op == "call_function":
            distinct.setdefault(call_signature(node), node)
    device_preset = load_device(preset) if isinstance(preset, str) else preset
    runnable = _is_here(device) and (device_preset is None or device_preset.kind == device.type)
    if costs == "measured" and not runnable:
        name = device_preset.name if device_preset else str(device)
        raise MeasureError(f"costs='measured' cannot run kernels for {name!r} on this machine; pass costs='roofline'")
    measured: dict[str, Measurement] = {}
    to_run: dict[str, fx.Node] = {}
    if runnable:
        to_run = {key: node for key, node in distinct.items() if _runs_alone(node)}
        prepare_kernels(to_run.values(), device)
        measured = _measured(to_run, device, timed if costs == "measured" else frozenset(), progress)
        if costs == "measured":
            _warn_of_meta(distinct)
    if costs == "roofline" and device_preset is None:
        device_preset = preset_of(device)
    failed = {key: _bounded(node) for key, node in to_run.items() if key not in measured}
    return {
        key: _cost(node, (measured | failed).get(key), costs, device_preset, device) for key, node in distinct.items()
    }


def _cost(
    node: fx.Node, measurement: Measurement | None, costs: str, preset: DevicePreset | None, device: torch.device
) -> Cost:
    """Combine measured and estimated numbers. Calls that compute nothing on tensors cost nothing."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return Cost(0.0, 0, 0)
    flops = count_flops(node)
    layouts = measurement.layouts if measurement is not None else None
    working_bytes = measurement.working_bytes if measurement is not None else None
    if working_bytes is None:
        working_bytes = estimated_working_bytes(node)
    if costs == "measured" and measurement is not None and measurement.seconds is not None:
        return Cost(measurement.seconds, working_bytes, flops, layouts)
    if costs == "flops":
        moved = 0 if is_view(node) else moved_bytes(node)
        seconds = (flops + moved / _BYTES_MOVED_PER_OPERATION) / NOMINAL_FLOPS_PER_SECOND
        return Cost(seconds, working_bytes, flops, layouts)
    return Cost(roofline_seconds(node, flops, preset or preset_of(device)), working_bytes, flops, layouts)


def _bounded(node: fx.Node) -> Measurement:
    """Return the measurement of a kernel that could not be run: no time, and an upper bound of its memory."""
    return Measurement(None, bounding_working_bytes(node))


def _is_here(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())


def _runs_alone(node: fx.Node) -> bool:
    """Return whether the call can be run here: an operation without side effects whose tensors are not on `meta`."""
    return runs_alone(node.target) and not _is_on_meta(node)


def _is_on_meta(node: fx.Node) -> bool:
    tensors = [*tensor_operands(node), *tensors_in(value_of(node))]
    return any(tensor.device.type == "meta" for tensor in tensors)


def _warn_of_meta(nodes: dict[str, fx.Node]) -> None:
    count = sum(_is_on_meta(node) for node in nodes.values())
    if count:
        warnings.warn(
            f"{count} kernels have tensors on 'meta' and cannot be run, so their cost is estimated from shapes; pass "
            "costs='roofline' and a device preset to choose the device",
            MeasureWarning,
            stacklevel=3,
        )


def _measured(
    nodes: dict[str, fx.Node],
    device: torch.device,
    timed: frozenset[str],
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, Measurement]:
    """Return the measurements from the cache; run the other kernels and add them to the cache.

    Kernels of operations that are not torch's own may differ tomorrow under the same name, so they are run each time.
    timed: the signatures whose seconds are needed.
    """
    cache = CostCache.load(device)
    foreign = {key for key, node in nodes.items() if is_foreign(node.target)}
    known = {key: measurement for key, measurement in cache.measurements.items() if key not in foreign}
    unknown = Measurement()
    memory_of = {key: node for key, node in nodes.items() if not known.get(key, unknown).is_seen}
    seconds_of = {key: node for key, node in nodes.items() if key in timed and known.get(key, unknown).seconds is None}
    if memory_of or seconds_of:
        measurements = run_kernels(memory_of, seconds_of, device, progress)
        for key in measurements.keys() - foreign:
            cache.add(key, measurements[key])
        cache.save()
        known |= {**measurements, **cache.measurements}
    return known
