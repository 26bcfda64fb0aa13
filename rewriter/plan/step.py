"""From a module and sample inputs to scheduling problems: capture, passes, measure, pose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import fx

from ...kernels.approximate_codecs import USUAL_FAMILIES
from ...passes.build_problem import ProblemMapping, pose
from ...passes.encodings.codec_sites import CodecSite, codec_sites_of
from ...passes.pipeline import allowed_at, recompute_in_backward, run_passes
from ...passes.rewrites.accumulate_grads import hand_over_gradients
from ...passes.savings import Saving
from ...passes.step_graph import StepGraph
from ...solvers.portfolio import Portfolio
from ...solvers.problem.plan import Plan
from ...solvers.problem.simulate import baseline_of
from ..capture.boundary.outputs import Arrivals
from ..capture.capture import capture
from ..capture.captured_step import Captured
from ..capture.operands.layouts_seen import SEEN, stand_ins
from ..errors import PlanError
from ..measure.costs import Cost, measure_costs, signature
from ..noise.sensitivity import Sensitivity, sensitivity_of
from ..text.byte_sizes import format_bytes
from .options import Options
from .present_gradients import problem_in
from .situation import Situation, device_of, rounding_bytes, situation_of

Progress = Callable[[float, str], None]

# What torch.get_rng_state() returns for the CPU's generator; a CUDA generator's state lives on the host.
_CPU_STATE_BYTES = 5056
_MOST_CAPTURES = 8
_NOISY = {"groups", "spread"}  # codes of values from which others may be made again


@dataclass(frozen=True)
class StepCosts:
    """A captured step, its step graph, how its storages may be encoded, and what all that costs: what stays the same
    while `.grad` comes and goes. sensitivity: of the gradient to what is approximate, if anything may be. remade: the
    same step with more made again in backward (`recompute_in_backward`), which needs fewer approximate codes."""

    captured: Captured
    step: StepGraph
    codec_sites: Mapping[int, tuple[CodecSite, ...]]
    costs: Mapping[str, Cost]
    options: Options
    device: torch.device
    name: str
    sensitivity: Sensitivity | None = None
    remade: RecomputeVariant | None = field(default=None, repr=False)

    @cached_property
    def posed(self) -> tuple[StepGraph, ProblemMapping]:
        """The step and its problem where no gradient is there before it, and nothing else but it either."""
        return _posed(self)


@dataclass(eq=False)
class RecomputeVariant:
    """The step with more made again in backward, whose noise is measured when it is first asked for."""

    costs: StepCosts
    measured: StepCosts | None = None

    def calibrated(self, situation: Situation) -> StepCosts:
        """As `calibrated`; of later situations the same."""
        if self.measured is None:
            self.measured = calibrated(self.costs, situation)
        return self.measured


@dataclass(frozen=True)
class StepProblem:
    """A step in a situation, ready to be solved. step: with its gradients handed over as the situation has them."""

    costs: StepCosts = field(repr=False)
    situation: Situation
    step: StepGraph
    posed: ProblemMapping

    @cached_property
    def remade(self) -> StepProblem | None:
        """The step with more made again in backward, compared with this one; None if nothing is."""
        if self.costs.remade is None:
            return None
        costs = self.costs.remade.calibrated(self.situation)
        step, posed = formulate_step(costs, self.situation)
        posed = replace(posed, problem=replace(posed.problem, reference=baseline_of(self.posed.problem)))
        return StepProblem(costs, self.situation, step, posed)

    @property
    def ways(self) -> Iterator[StepProblem]:
        """All ways to make the step's gradients; the second one is measured when its turn comes."""
        yield self
        if self.remade is not None:
            yield self.remade


@dataclass(frozen=True)
class PlannedStep:
    """A plan with the step it is for."""

    step: StepGraph
    posed: ProblemMapping
    plan: Plan
    costs: StepCosts = field(repr=False)

    @property
    def coded(self) -> tuple[tuple[int, int], ...]:
        """What the plan encodes, each once: storage and number of the coding."""
        return tuple((self.posed.storages[value], number) for value, number in self.plan.encoded)

    @property
    def noise_energy(self) -> float:
        """What the approximate codes of the plan are predicted to add to E‖ĝ − g‖² of all gradients together."""
        return self.costs.sensitivity.energy(self.coded) if self.costs.sensitivity is not None else 0.0


def capture_step(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    progress: Progress | None = None,
    arriving: Arrivals | None = None,
) -> StepCosts:
    """Captures a step and finds what its kernels cost. Raises CaptureError, MeasureError.

    arriving: the gradients to plan for, by default those that most likely arrive.
    Where a kernel is seen to lay its results out unlike its fake ones, the step is captured again with what was seen:
    what follows may be laid out otherwise too, and so on.
    """
    for _ in range(_MOST_CAPTURES):
        found, calls = _captured_once(model, args, kwargs, options, progress, arriving)
        surprises = SEEN.surprises(calls, {text: cost.layouts for text, cost in found.costs.items()})
        if not surprises:
            return found
    raise PlanError(
        f"{type(model).__name__}: after {_MOST_CAPTURES} captures {surprises[0]} still lays out its results unlike "
        "what is predicted, so that no plan would hold; keep what calls it out of the rewritten module"
    )


def _captured_once(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    progress: Progress | None,
    arriving: Arrivals | None,
) -> tuple[StepCosts, list[fx.Node]]:
    """A step captured with the layouts that have been seen so far, and all calls that were run to see theirs."""
    preset = options.preset()
    foreign = preset.kind if preset is not None and preset.kind != "cpu" else None
    if progress:
        progress(0.0, "capturing")
    captured = capture(
        model,
        args,
        kwargs,
        outputs=list(options.outputs) if options.outputs is not None else None,
        differentiable=list(options.differentiable) if options.differentiable is not None else None,
        arriving=arriving,
        device=foreign,
    )
    as_captured = stand_ins(captured.graph.graph)  # passes replace some of them, and what they replace was eager's
    step = run_passes(captured.graph, captured.mutations, options.fidelity)
    device = torch.device(preset.kind) if preset is not None else device_of(model, args, kwargs)
    found = StepCosts(captured, step, _codings(step, options), {}, options, device, type(model).__name__)
    is_noisy = options.fidelity == "approximate" and _NOISY & set(options.codecs or USUAL_FAMILIES)
    remade = _remade(found) if is_noisy else None
    calls = [call for one in (found, remade) if one is not None for call in _calls(one)]
    told = (
        (lambda done, total, name: progress(0.1 + 0.5 * done / max(total, 1), f"measuring {name}"))
        if progress
        else None
    )
    costs = measure_costs(calls, device, options.costs, preset, told, as_captured)
    found = replace(
        found, costs=costs, remade=RecomputeVariant(replace(remade, costs=costs)) if remade is not None else None
    )
    return found, [*calls, *as_captured]


def _codings(step: StepGraph, options: Options) -> Mapping[int, tuple[CodecSite, ...]]:
    return codec_sites_of(step, allowed_at(options.fidelity), options.codecs or USUAL_FAMILIES)


def _calls(costs: StepCosts) -> Iterator[fx.Node]:
    """All that a step may call."""
    for kernel in costs.step.kernels:
        yield from kernel.measured_calls if kernel.role == "compute" else ()
    for one in chain.from_iterable(costs.codec_sites.values()):
        yield from one.calls


def _remade(costs: StepCosts) -> StepCosts | None:
    """The same step with more made again in backward, if any can be."""
    captured = costs.captured
    found = recompute_in_backward(captured.graph, captured.mutations, costs.step)
    if found is None:
        return None
    graph, step = found
    notes = (*captured.notes, "backward makes again what it can of what it reads anyway")
    return replace(
        costs,
        captured=replace(captured, graph=graph, notes=notes),
        step=step,
        codec_sites=_codings(step, costs.options),
    )


def capture_and_formulate(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
) -> StepProblem:
    """The scheduling problem of a step in the situation that there is now. Raises CaptureError, MeasureError."""
    costs = capture_step(model, args, kwargs, options, progress)
    situation = situation_of(model, args, kwargs, options, costs.device, costs.captured.constants, optimizer)
    costs = calibrated(costs, situation, progress)
    return StepProblem(costs, situation, *formulate_step(costs, situation))


def calibrated(costs: StepCosts, situation: Situation, progress: Progress | None = None) -> StepCosts:
    """The step with the error of each approximate coding measured on what the situation has; raises PlanError.

    It is run once, in as few bytes as it can be without encodings.
    """
    if costs.options.fidelity != "approximate":
        return costs
    if costs.options.preset() is not None or any(t.device.type == "meta" for t in situation.tensors.values()):
        raise PlanError(
            'fidelity="approximate" measures on real data how much each code adds to the gradient\'s variance: pass a '
            'model and inputs with data and no device= preset, or fidelity="rounding"'
        )
    if progress:
        progress(0.6, "measuring errors")
    step, posed = formulate_step(replace(costs, codec_sites={}), situation)
    plan = Portfolio().frontier(posed.problem, 2)[-1]
    found = sensitivity_of(
        step,
        posed,
        plan.schedule,
        situation.tensors,
        costs.codec_sites,
        _batch(situation),
        costs.device,
        costs.options.error_budget,
    )
    notes = costs.captured.notes
    if costs.codec_sites and not found.own_variance > 0:
        notes = (*notes, "nothing is kept approximately: the sample shows no finite variance of the gradient")
    captured = replace(costs.captured, notes=notes)
    return replace(costs, captured=captured, codec_sites=found.codec_sites, sensitivity=found)


def _batch(situation: Situation) -> tuple[int, int]:
    """How many samples the inputs have, and how many tokens each: the first two dimensions of the first of them, if it
    is one of ids [samples, tokens] or of vectors [samples, tokens, features]; a picture has no tokens."""
    for source, tensor in situation.tensors.items():
        if source.kind == "input" and tensor.dim():
            has_tokens = tensor.dim() == (3 if tensor.is_floating_point() else 2)
            return tensor.shape[0], tensor.shape[1] if has_tokens else 1
    return 1, 1


def formulate_step(costs: StepCosts, situation: Situation) -> tuple[StepGraph, ProblemMapping]:
    """The scheduling problem of a captured step in a situation."""
    step, posed = costs.posed
    return step, replace(posed, problem=problem_in(step, posed, situation))


def _posed(costs: StepCosts) -> tuple[StepGraph, ProblemMapping]:
    captured = costs.captured
    step = hand_over_gradients(costs.step, captured.graph, captured.gradients, frozenset())

    def cost_of(call: Any) -> tuple[float, int]:
        cost = costs.costs[signature(call)]
        return cost.seconds, cost.working_bytes

    posed = pose(
        step,
        cost_of,
        resident_bytes=0,
        codec_sites=costs.codec_sites,
        error_budget=costs.options.error_budget if costs.options.fidelity == "approximate" else 0.0,
        state_bytes=_CPU_STATE_BYTES if costs.device.type == "cpu" else 0,
        floor_bytes=_start_bytes(costs),
        rounding_bytes=rounding_bytes(costs.device, costs.options.preset()),
        name=costs.name,
        costs=costs.options.costs,
        notes=(*captured.notes, *_savings_text(costs.step.savings)),
    )
    return step, posed


def _start_bytes(costs: StepCosts) -> int:
    """What a step takes at its very start: a copy of the generator's state, if other gradients may arrive."""
    copied = len(costs.captured.outputs.able) > 1 and any(kernel.random for kernel in costs.step.kernels)
    return _CPU_STATE_BYTES if copied and costs.device.type == "cpu" else 0


def _savings_text(savings: Iterable[Saving]) -> Iterator[str]:
    """What each pass took back."""
    saved: dict[str, int] = {}
    for one in savings:
        saved[one.name] = saved.get(one.name, 0) + one.saved_bytes
    for name, saved_bytes in saved.items():
        if saved_bytes > 0:
            yield f"{name}: backward reads {format_bytes(saved_bytes)} less of forward"
