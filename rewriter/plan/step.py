"""Turns a module and sample inputs into scheduling problems: captures, runs passes, measures and builds the problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import fx

from ...kernels.approximate_codecs import USUAL_FAMILIES
from ...passes.build_problem import ProblemMapping, build_problem
from ...passes.encodings.codec_sites import CodecSite, find_codec_sites
from ...passes.pipeline import allowed_at, recompute_in_backward, run_passes
from ...passes.rewrites.accumulate_grads import accumulate_grads
from ...passes.savings import Saving
from ...passes.step_graph import StepGraph
from ...solvers.portfolio import Portfolio
from ...solvers.problem.plan import Plan
from ...solvers.problem.simulate import baseline_of
from ..capture.boundary.outputs import Arrivals
from ..capture.capture import capture
from ..capture.captured_step import Captured
from ..capture.operands.layouts_seen import SEEN, distinct_calls
from ..errors import PlanError
from ..measure.costs import Cost, measure_costs, signature
from ..noise.sensitivity import Sensitivity, sensitivity_of
from ..text.byte_sizes import format_bytes
from .options import Options
from .present_gradients import problem_in
from .situation import Situation, device_of, rounding_bytes, situation_of

Progress = Callable[[float, str], None]

# The size of torch.get_rng_state() for the CPU's generator; a CUDA generator's state lives on the host.
_CPU_STATE_BYTES = 5056
_MOST_CAPTURES = 8
_NOISY = {"groups", "spread"}  # codes of values from which others may be recomputed


@dataclass(frozen=True)
class StepCosts:
    """A captured step with its costs: all that stays the same while `.grad` comes and goes.

    captured: the captured step.
    step: its step graph.
    codec_sites: the ways to encode each storage.
    costs: the cost of each call, by signature.
    options: the options of the plan.
    device: the device that is planned for.
    name: the name of the model.
    sensitivity: the sensitivity of the gradient to approximate codes, if any are allowed.
    recomputing: the variant of the step that recomputes more in backward (`recompute_in_backward`) and needs fewer
        approximate codes.
    """

    captured: Captured
    step: StepGraph
    codec_sites: Mapping[int, tuple[CodecSite, ...]]
    costs: Mapping[str, Cost]
    options: Options
    device: torch.device
    name: str
    sensitivity: Sensitivity | None = None
    recomputing: RecomputeVariant | None = field(default=None, repr=False)

    @cached_property
    def step_and_mapping(self) -> tuple[StepGraph, ProblemMapping]:
        """Return the step and its problem mapping in the situation without gradients and other resident bytes."""
        return _build_step_problem(self)


@dataclass(eq=False)
class RecomputeVariant:
    """The variant of a step that recomputes more in backward. Its noise is measured when it is first needed."""

    costs: StepCosts
    measured: StepCosts | None = None

    def calibrated(self, situation: Situation) -> StepCosts:
        """Return the calibrated costs; they are measured in the first situation and reused in later ones."""
        if self.measured is None:
            self.measured = calibrated(self.costs, situation)
        return self.measured


@dataclass(frozen=True)
class StepProblem:
    """A step in a situation, ready to be solved.

    costs: the captured step with its costs.
    situation: the situation.
    step: the step graph, with its gradients accumulated into .grad.
    mapping: the mapping between the step graph and the scheduling problem.
    """

    costs: StepCosts = field(repr=False)
    situation: Situation
    step: StepGraph
    mapping: ProblemMapping

    @cached_property
    def recomputing(self) -> StepProblem | None:
        """Return the variant of the step that recomputes more in backward, or None if nothing can be recomputed.

        Its problem refers to this one's baseline.
        """
        if self.costs.recomputing is None:
            return None
        costs = self.costs.recomputing.calibrated(self.situation)
        step, mapping = formulate_step(costs, self.situation)
        mapping = replace(mapping, problem=replace(mapping.problem, reference=baseline_of(self.mapping.problem)))
        return StepProblem(costs, self.situation, step, mapping)

    @property
    def variants(self) -> Iterator[StepProblem]:
        """Yield all variants of the step; the second one is measured only when it is requested."""
        yield self
        if self.recomputing is not None:
            yield self.recomputing


@dataclass(frozen=True)
class PlannedStep:
    """A plan with the step that it is for."""

    step: StepGraph
    mapping: ProblemMapping
    plan: Plan
    costs: StepCosts = field(repr=False)

    @property
    def coded(self) -> tuple[tuple[int, int], ...]:
        """Return each encoding of the plan once, as a storage with the number of its codec site."""
        return tuple((self.mapping.storages[value], number) for value, number in self.plan.encoded)

    @property
    def noise_energy(self) -> float:
        """Return the predicted E‖ĝ − g‖² that the plan's approximate codes add, over all gradients together."""
        return self.costs.sensitivity.energy(self.coded) if self.costs.sensitivity is not None else 0.0


def capture_step(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    progress: Progress | None = None,
    arriving: Arrivals | None = None,
) -> StepCosts:
    """Capture a step and measure the costs of its kernels. Raises CaptureError, MeasureError.

    The step is captured again where a kernel lays its results out unlike its fake version. Later kernels may differ
    then too, so this repeats up to a limit.
    arriving: the gradients to plan for, by default those that most likely arrive.
    """
    for _ in range(_MOST_CAPTURES):
        step_costs, calls = _captured_once(model, args, kwargs, options, progress, arriving)
        layout_mismatches = SEEN.layout_mismatches(
            calls, {text: cost.layouts for text, cost in step_costs.costs.items()}
        )
        if not layout_mismatches:
            return step_costs
    raise PlanError(
        f"{type(model).__name__}: after {_MOST_CAPTURES} captures {layout_mismatches[0]} still lays "
        "out its results differently from what is predicted, so that no plan would hold; keep the code that calls it "
        "out of the rewritten module"
    )


def _captured_once(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    progress: Progress | None,
    arriving: Arrivals | None,
) -> tuple[StepCosts, list[fx.Node]]:
    """Capture a step with the layouts seen so far; return it with all calls that were run to see their layouts."""
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
    as_captured = distinct_calls(
        captured.graph.graph
    )  # passes replace some of them, and the replaced ones were eager's
    step = run_passes(captured.graph, captured.mutations, options.fidelity)
    device = torch.device(preset.kind) if preset is not None else device_of(model, args, kwargs)
    step_costs = StepCosts(captured, step, _codec_sites(step, options), {}, options, device, type(model).__name__)
    is_noisy = options.fidelity == "approximate" and _NOISY & set(options.codecs or USUAL_FAMILIES)
    recomputing = _recomputing_variant(step_costs) if is_noisy else None
    calls = [call for variant in (step_costs, recomputing) if variant is not None for call in _calls(variant)]
    measuring_progress = (
        (lambda done, total, name: progress(0.1 + 0.5 * done / max(total, 1), f"measuring {name}"))
        if progress
        else None
    )
    costs = measure_costs(calls, device, options.costs, preset, measuring_progress, as_captured)
    step_costs = replace(
        step_costs,
        costs=costs,
        recomputing=RecomputeVariant(replace(recomputing, costs=costs)) if recomputing is not None else None,
    )
    return step_costs, [*calls, *as_captured]


def _codec_sites(step: StepGraph, options: Options) -> Mapping[int, tuple[CodecSite, ...]]:
    return find_codec_sites(step, allowed_at(options.fidelity), options.codecs or USUAL_FAMILIES)


def _calls(costs: StepCosts) -> Iterator[fx.Node]:
    """Yield all calls that a step may make."""
    for kernel in costs.step.kernels:
        yield from kernel.measured_calls if kernel.role == "compute" else ()
    for site in chain.from_iterable(costs.codec_sites.values()):
        yield from site.calls


def _recomputing_variant(costs: StepCosts) -> StepCosts | None:
    """Return the same step with more recomputed in backward, or None if nothing can be recomputed."""
    captured = costs.captured
    recomputed = recompute_in_backward(captured.graph, captured.mutations, costs.step)
    if recomputed is None:
        return None
    graph, step = recomputed
    notes = (*captured.notes, "backward recomputes what it can from the values that it reads anyway")
    return replace(
        costs,
        captured=replace(captured, graph=graph, notes=notes),
        step=step,
        codec_sites=_codec_sites(step, costs.options),
    )


def capture_and_formulate(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
) -> StepProblem:
    """Return the scheduling problem of a step in the present situation. Raises CaptureError, MeasureError."""
    costs = capture_step(model, args, kwargs, options, progress)
    situation = situation_of(model, args, kwargs, options, costs.device, costs.captured.constants, optimizer)
    costs = calibrated(costs, situation, progress)
    return StepProblem(costs, situation, *formulate_step(costs, situation))


def calibrated(costs: StepCosts, situation: Situation, progress: Progress | None = None) -> StepCosts:
    """Return the step with the error of each approximate codec site measured in the situation. Raises PlanError.

    The step runs once, in as few bytes as possible without encodings.
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
    step, mapping = formulate_step(replace(costs, codec_sites={}), situation)
    plan = Portfolio().frontier(mapping.problem, 2)[-1]
    sensitivity = sensitivity_of(
        step,
        mapping,
        plan.schedule,
        situation.tensors,
        costs.codec_sites,
        _batch(situation),
        costs.device,
        costs.options.error_budget,
    )
    notes = costs.captured.notes
    if costs.codec_sites and not sensitivity.own_variance > 0:
        notes = (*notes, "nothing is kept approximately: the sample shows no finite variance of the gradient")
    captured = replace(costs.captured, notes=notes)
    return replace(costs, captured=captured, codec_sites=sensitivity.codec_sites, sensitivity=sensitivity)


def _batch(situation: Situation) -> tuple[int, int]:
    """Return the number of samples in the inputs and the number of tokens in each.

    Both are the first dimensions of the first input, if it holds ids [samples, tokens] or vectors [samples, tokens,
    features]. A picture counts as one token.
    """
    for source, tensor in situation.tensors.items():
        if source.kind == "input" and tensor.dim():
            has_tokens = tensor.dim() == (3 if tensor.is_floating_point() else 2)
            return tensor.shape[0], tensor.shape[1] if has_tokens else 1
    return 1, 1


def formulate_step(costs: StepCosts, situation: Situation) -> tuple[StepGraph, ProblemMapping]:
    """Return the step graph and the problem mapping of a captured step in a situation."""
    step, mapping = costs.step_and_mapping
    return step, replace(mapping, problem=problem_in(step, mapping, situation))


def _build_step_problem(costs: StepCosts) -> tuple[StepGraph, ProblemMapping]:
    captured = costs.captured
    step = accumulate_grads(costs.step, captured.graph, captured.gradients, frozenset())

    def cost_of(call: Any) -> tuple[float, int]:
        cost = costs.costs[signature(call)]
        return cost.seconds, cost.working_bytes

    mapping = build_problem(
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
    return step, mapping


def _start_bytes(costs: StepCosts) -> int:
    """Return the bytes taken at the very start of a step: a copy of the generator's state, if other gradients may
    arrive.
    """
    copied = len(costs.captured.outputs.differentiable) > 1 and any(kernel.random for kernel in costs.step.kernels)
    return _CPU_STATE_BYTES if copied and costs.device.type == "cpu" else 0


def _savings_text(savings: Iterable[Saving]) -> Iterator[str]:
    """Describe the savings of each pass."""
    saved: dict[str, int] = {}
    for saving in savings:
        saved[saving.name] = saved.get(saving.name, 0) + saving.saved_bytes
    for name, saved_bytes in saved.items():
        if saved_bytes > 0:
            yield f"{name}: backward reads {format_bytes(saved_bytes)} less of forward"
