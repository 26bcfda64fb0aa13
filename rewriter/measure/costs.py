"""Finds what each kernel of a captured step costs: its seconds, its memory while it runs, its arithmetic."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from ...passes.foreign_calls import is_foreign, runs_alone
from ..capture.operands.operands import signature, tensor_operands, tensors_in, value_of
from ..errors import LowtideError
from .cost_cache import CostCache, Measurement
from .device_presets import DevicePreset, load_device, preset_of
from .flops import count_flops
from .roofline import bounding_working_bytes, estimated_working_bytes, is_view, moved_bytes, roofline_seconds
from .run_kernels import MeasureWarning, prepare_kernels, run_kernels

__all__ = ["Cost", "MeasureError", "MeasureWarning", "measure_costs", "signature"]

NOMINAL_FLOPS_PER_SECOND = 1e12
"""The speed at which `costs="flops"` turns operations into seconds."""
_BYTES_MOVED_PER_OPERATION = 1000
"""What an operation weighs as much as: among schedules with equally many operations the one that moves least wins."""


class MeasureError(LowtideError, ValueError):
    """Costs that cannot be found in the way asked for."""


@dataclass(frozen=True)
class Cost:
    """One run of a kernel. working_bytes: the most it has allocated at any moment, its outputs included. layouts: how
    its results were seen to lie in memory (`layouts_seen.written`), None where it was not run."""

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
    """The cost of every call among `nodes`, by `signature`; each distinct one is run once and then cached.

    costs: "measured" runs and times each kernel on `device` (the least of several runs, in this process's
    number of threads). "roofline" estimates seconds by `preset`, by default that of `device`. "flops" takes
    1e12 operations per second, and next to nothing for the bytes a kernel moves; both give the same seconds
    every time. The memory is measured wherever `device` is this machine's and the tensors are not on `meta`, and else
    estimated from shapes. progress: called with (kernels done, kernels to run, name). untimed: further calls, of which
    memory and layouts are wanted, and no measured seconds.

    Raises `MeasureError` when `costs` is unknown, or "measured" is asked for on a device that is not here.
    Warns with `MeasureWarning` where a kernel cannot be run alone (its memory is then bounded from above), where its
    tensors are on `meta` (its seconds are then by roofline), and where a running profiler forbids to measure memory.
    """
    device = torch.device(device)
    if costs not in ("measured", "roofline", "flops"):
        raise MeasureError(f"costs={costs!r} is unknown; choose 'measured', 'roofline' or 'flops'")
    distinct: dict[str, fx.Node] = {}
    for node in nodes:
        if node.op == "call_function":
            distinct.setdefault(signature(node), node)
    timed = frozenset(distinct)
    for node in untimed:
        if node.op == "call_function":
            distinct.setdefault(signature(node), node)
    chosen = load_device(preset) if isinstance(preset, str) else preset
    runnable = _is_here(device) and (chosen is None or chosen.kind == device.type)
    if costs == "measured" and not runnable:
        name = chosen.name if chosen else str(device)
        raise MeasureError(f"costs='measured' cannot run kernels for {name!r} on this machine; pass costs='roofline'")
    measured: dict[str, Measurement] = {}
    to_run: dict[str, fx.Node] = {}
    if runnable:
        to_run = {text: node for text, node in distinct.items() if _runs_alone(node)}
        prepare_kernels(to_run.values(), device)
        measured = _measured(to_run, device, timed if costs == "measured" else frozenset(), progress)
        if costs == "measured":
            _warn_of_meta(distinct)
    if costs == "roofline" and chosen is None:
        chosen = preset_of(device)
    failed = {text: _bounded(node) for text, node in to_run.items() if text not in measured}
    return {text: _cost(node, (measured | failed).get(text), costs, chosen, device) for text, node in distinct.items()}


def _cost(
    node: fx.Node, found: Measurement | None, costs: str, preset: DevicePreset | None, device: torch.device
) -> Cost:
    """Puts measured and estimated numbers together; calls that compute nothing on tensors cost nothing."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return Cost(0.0, 0, 0)
    flops = count_flops(node)
    layouts = found.layouts if found is not None else None
    working_bytes = found.working_bytes if found is not None else None
    if working_bytes is None:
        working_bytes = estimated_working_bytes(node)
    if costs == "measured" and found is not None and found.seconds is not None:
        return Cost(found.seconds, working_bytes, flops, layouts)
    if costs == "flops":
        moved = 0 if is_view(node) else moved_bytes(node)
        seconds = (flops + moved / _BYTES_MOVED_PER_OPERATION) / NOMINAL_FLOPS_PER_SECOND
        return Cost(seconds, working_bytes, flops, layouts)
    return Cost(roofline_seconds(node, flops, preset or preset_of(device)), working_bytes, flops, layouts)


def _bounded(node: fx.Node) -> Measurement:
    """What is said of a kernel that could not be run: nothing of its time, and of its memory no less than it takes."""
    return Measurement(None, bounding_working_bytes(node))


def _is_here(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())


def _runs_alone(node: fx.Node) -> bool:
    """Whether the call can be run here: an operation that only returns something, whose tensors are not on `meta`."""
    return runs_alone(node.target) and not _is_on_meta(node)


def _is_on_meta(node: fx.Node) -> bool:
    tensors = [*tensor_operands(node), *tensors_in(value_of(node))]
    return any(tensor.device.type == "meta" for tensor in tensors)


def _warn_of_meta(nodes: dict[str, fx.Node]) -> None:
    count = sum(_is_on_meta(node) for node in nodes.values())
    if count:
        warnings.warn(
            f"{count} kernels have tensors on 'meta' and cannot be run, so their cost is estimated from shapes; "
            "pass costs='roofline' and a device preset to choose the device",
            MeasureWarning,
            stacklevel=3,
        )


def _measured(
    nodes: dict[str, fx.Node],
    device: torch.device,
    timed: frozenset[str],
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, Measurement]:
    """What the cache knows, and runs for the rest, which are added to the cache. timed: whose seconds are wanted.

    Kernels of operations that are not torch's own may be others tomorrow under the same name, and are run each time.
    """
    cache = CostCache.load(device)
    foreign = {text for text, node in nodes.items() if is_foreign(node.target)}
    known = {text: found for text, found in cache.measurements.items() if text not in foreign}
    unknown = Measurement()
    memory_of = {text: node for text, node in nodes.items() if not known.get(text, unknown).is_seen}
    seconds_of = {
        text: node for text, node in nodes.items() if text in timed and known.get(text, unknown).seconds is None
    }
    if memory_of or seconds_of:
        found = run_kernels(memory_of, seconds_of, device, progress)
        for text in found.keys() - foreign:
            cache.add(text, found[text])
        cache.save()
        known |= {**found, **cache.measurements}
    return known
