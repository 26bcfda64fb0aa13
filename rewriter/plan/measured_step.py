"""Captures a training step, runs the passes over it and measures the costs of its kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import fx

from ...kernels.approximate_codecs import USUAL_FAMILIES
from ...passes.build_problem import ProblemMapping, build_problem
from ...passes.calls import call_signature
from ...passes.encodings.codec_sites import CodecSite, find_codec_sites
from ...passes.pipeline import allowed_at, recompute_in_backward, run_passes
from ...passes.savings import Saving
from ...passes.step_graph import StepGraph
from ..capture.boundary.outputs import Arrivals
from ..capture.capture import capture
from ..capture.captured_step import CapturedStep
from ..capture.operands.layouts_seen import SEEN, distinct_calls
from ..errors import PlanError
from ..measure.costs import Cost, measure_costs
from ..noise.sensitivity import Sensitivity
from ..text.byte_sizes import format_bytes
from .options import Options
from .progress import Progress
from .situation import device_of, rounding_bytes

# The size of torch.get_rng_state() for the CPU's generator; a CUDA generator's state lives on the host.
_CPU_STATE_BYTES = 5056
_MOST_CAPTURES = 8
_NOISY = {"groups", "spread"}  # codes of values from which others may be recomputed


@dataclass(frozen=True)
class MeasuredStep:
    """A captured step with its costs: all that stays the same while `.grad` comes and goes.

    captured: the captured step, its graph after passes.
    step: its step graph.
    codec_sites: the ways to encode each storage.
    costs: the cost of each call, by signature.
    options: the options of the plan.
    device: the device that is planned for.
    name: the name of the model.
    sensitivity: the sensitivity of the gradient to approximate codes, if any are allowed and it has been measured.
    recomputing: the variant of the step that recomputes more in backward (`recompute_in_backward`) and needs fewer
        approximate codes; None if there is nothing to recompute.
    """

    captured: CapturedStep
    step: StepGraph
    codec_sites: Mapping[int, tuple[CodecSite, ...]]
    costs: Mapping[str, Cost]
    options: Options
    device: torch.device
    name: str
    sensitivity: Sensitivity | None = None
    recomputing: MeasuredStep | None = field(default=None, repr=False)

    @property
    def granularity(self) -> int:
        """The granularity in bytes of the device's allocator."""
        return rounding_bytes(self.device, self.options.preset())

    @cached_property
    def mapping(self) -> ProblemMapping:
        """The step's problem in the situation without gradients and other resident bytes, and what stands for what."""
        return build_problem(
            self.step,
            self._cost_of,
            resident_bytes=0,
            codec_sites=self.codec_sites,
            error_budget=self.options.error_budget if self.options.fidelity == "approximate" else 0.0,
            state_bytes=_CPU_STATE_BYTES if self.device.type == "cpu" else 0,
            floor_bytes=_start_bytes(self),
            rounding_bytes=self.granularity,
            name=self.name,
            costs=self.options.costs,
            notes=(*self.captured.notes, *_savings_text(self.step.savings)),
        )

    def _cost_of(self, call: fx.Node) -> tuple[float, int]:
        """Return the seconds of a call and the bytes that it works in."""
        cost = self.costs[call_signature(call)]
        return cost.seconds, cost.working_bytes


def measure_step(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    progress: Progress | None = None,
    arriving: Arrivals | None = None,
) -> MeasuredStep:
    """Capture a step and measure the costs of its kernels. Raises CaptureError, MeasureError, PlanError.

    The step is captured again where a kernel lays its results out unlike its fake version. Later kernels may differ
    then too, so this repeats up to a limit.
    arriving: the gradients to plan for, by default those that most likely arrive.
    """
    for _ in range(_MOST_CAPTURES):
        measured, calls = _measured_once(model, args, kwargs, options, progress, arriving)
        layouts = {text: cost.layouts for text, cost in measured.costs.items()}
        layout_mismatches = SEEN.layout_mismatches(calls, layouts)
        if not layout_mismatches:
            return measured
    raise PlanError(
        f"{type(model).__name__}: after {_MOST_CAPTURES} captures {layout_mismatches[0]} still lays "
        "out its results differently from what is predicted, so that no plan would hold; keep the code that calls it "
        "out of the rewritten module"
    )


def _measured_once(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    progress: Progress | None,
    arriving: Arrivals | None,
) -> tuple[MeasuredStep, list[fx.Node]]:
    """Capture a step with the layouts seen so far; return it with all calls that were run to see their layouts."""
    preset = options.preset()
    if progress:
        progress(0.0, "capturing")
    captured = capture(
        model,
        args,
        kwargs,
        outputs=list(options.outputs) if options.outputs is not None else None,
        differentiable=list(options.differentiable) if options.differentiable is not None else None,
        arriving=arriving,
        device=preset.kind if preset is not None and preset.kind != "cpu" else None,
    )
    # Passes replace some calls, and the replaced ones were eager's.
    as_captured = distinct_calls(captured.graph.graph)
    device = torch.device(preset.kind) if preset is not None else device_of(model, args, kwargs)
    graph, step = run_passes(captured.graph, options.fidelity)
    captured = replace(captured, graph=graph)
    sites = _codec_sites(step, options)
    unmeasured = MeasuredStep(captured, step, sites, {}, options, device, type(model).__name__)
    is_noisy = options.fidelity == "approximate" and _NOISY & set(options.codecs or USUAL_FAMILIES)
    recomputing = _recomputing_variant(unmeasured) if is_noisy else None
    calls = [call for variant in (unmeasured, recomputing) if variant is not None for call in _calls(variant)]
    costs = measure_costs(calls, device, options.costs, preset, _measuring(progress), as_captured)
    recomputing = replace(recomputing, costs=costs) if recomputing is not None else None
    return replace(unmeasured, costs=costs, recomputing=recomputing), [*calls, *as_captured]


def _measuring(progress: Progress | None) -> Any:
    """Return the progress of measuring (calls done, calls in all, name) as a part of the planning's progress."""
    if progress is None:
        return None
    return lambda done, total, name: progress(0.1 + 0.5 * done / max(total, 1), f"measuring {name}")


def _codec_sites(step: StepGraph, options: Options) -> Mapping[int, tuple[CodecSite, ...]]:
    return find_codec_sites(step, allowed_at(options.fidelity), options.codecs or USUAL_FAMILIES)


def _calls(measured: MeasuredStep) -> Iterator[fx.Node]:
    """Yield all calls that a step may make."""
    for kernel in measured.step.compute_kernels:
        yield from kernel.measured_calls
    for site in chain.from_iterable(measured.codec_sites.values()):
        yield from site.calls


def _recomputing_variant(measured: MeasuredStep) -> MeasuredStep | None:
    """Return the same step with more recomputed in backward, or None if nothing can be recomputed."""
    captured = measured.captured
    recomputed = recompute_in_backward(captured.graph, measured.step)
    if recomputed is None:
        return None
    graph, step = recomputed
    notes = (*captured.notes, "backward recomputes what it can from the values that it reads anyway")
    return replace(
        measured,
        captured=replace(captured, graph=graph, notes=notes),
        step=step,
        codec_sites=_codec_sites(step, measured.options),
    )


def _start_bytes(measured: MeasuredStep) -> int:
    """Return the bytes taken at the very start of a step: a copy of the generator's state, if other gradients may
    arrive.
    """
    differentiable = measured.captured.outputs.differentiable
    copied = len(differentiable) > 1 and any(kernel.random for kernel in measured.step.compute_kernels)
    return _CPU_STATE_BYTES if copied and measured.device.type == "cpu" else 0


def _savings_text(savings: Iterable[Saving]) -> Iterator[str]:
    """Describe the savings of each pass."""
    saved: dict[str, int] = {}
    for saving in savings:
        saved[saving.name] = saved.get(saving.name, 0) + saving.saved_bytes
    for name, saved_bytes in saved.items():
        if saved_bytes > 0:
            yield f"{name}: backward reads {format_bytes(saved_bytes)} less of forward"
