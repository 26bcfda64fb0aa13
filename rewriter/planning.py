"""From a module and sample inputs to a plan: capture, passes, measure, pose, solve."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from typing import Any

import torch

from ..kernels.approximate_codecs import USUAL_FAMILIES, check_families
from ..passes.accumulate import hand_over_gradients
from ..passes.encodings import Coding, codings_of
from ..passes.pipeline import FIDELITIES, allowed_at, run_passes
from ..passes.pose import Posed, pose
from ..passes.savings import Saving
from ..passes.step_graph import StepGraph
from ..solvers.errors import ScheduleError
from ..solvers.plan import Plan
from ..solvers.portfolio import SOLVER_NAMES, Portfolio
from ..solvers.problem import Problem
from ..solvers.simulate import baseline_of, make_plan
from .bytes_text import Share, format_bytes, parse_bytes
from .calls import is_random
from .capture import bind, capture
from .captured import Captured
from .devices import DevicePreset, load_device
from .errors import PlanError
from .measure import Cost, measure_costs, signature
from .optimizer_needs import optimizer_needs
from .sensitivity import Sensitivity, sensitivity_of
from .sources import Owners, Source
from .structure import flatten

Progress = Callable[[float, str], None]

# What torch.get_rng_state() returns for the CPU's generator; a CUDA generator's state lives on the host.
_CPU_STATE_BYTES = 5056
_ERROR_SLACK = 1.25  # for a plan made elsewhere, whose errors were measured on other data


@dataclass(frozen=True)
class Options:
    """How to capture and plan; the meaning of each is told at `lowtide.rewrite`."""

    fidelity: str = "bitwise"
    outputs: tuple[str, ...] | None = None
    differentiable: tuple[str, ...] | None = None
    costs: str = "measured"
    solver: str = "auto"
    device: str | None = None
    time_limit_seconds: float = inf
    error_budget: float = 0.01
    codecs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.fidelity not in FIDELITIES:
            raise ValueError(f"fidelity={self.fidelity!r} is unknown; choose among {', '.join(FIDELITIES)}")
        if self.costs not in ("measured", "roofline", "flops"):
            raise ValueError(f"costs={self.costs!r} is unknown; choose among measured, roofline, flops")
        if self.solver not in SOLVER_NAMES:
            raise ValueError(f"there is no solver {self.solver!r}: choose among {', '.join(SOLVER_NAMES)}")
        if not self.time_limit_seconds > 0:
            raise ValueError(f"time_limit={self.time_limit_seconds!r} is no time: pass seconds above 0")
        if isinstance(self.error_budget, bool) or not isinstance(self.error_budget, (int, float)):
            raise ValueError(f"error_budget={self.error_budget!r} is no number: pass a share of a variance, like 0.01")
        if not self.error_budget >= 0:
            raise ValueError(
                f"error_budget={self.error_budget!r} is no share of a variance: pass 0 or more, 0.01 for a hundredth"
            )
        self.preset()
        for name, item in (("outputs", "loss"), ("differentiable", "loss"), ("codecs", "groups")):
            if not isinstance(getattr(self, name), (tuple, str, type(None))):
                raise ValueError(f'{name}={getattr(self, name)!r} is no list of names: {name}=["{item}"]')
            if isinstance(getattr(self, name), str):
                raise ValueError(f'{name}={getattr(self, name)!r} is one string; pass a list: {name}=["{item}"]')
        if self.codecs is not None:
            check_families(self.codecs)
        for name in ("error_budget", "codecs") if self.fidelity != "approximate" else ():
            if getattr(self, name) != getattr(Options, name):
                raise ValueError(
                    f'{name}={getattr(self, name)!r} is for fidelity="approximate", and fidelity is {self.fidelity!r}: '
                    f"leave {name} out, or allow what it is for"
                )

    def preset(self) -> DevicePreset | None:
        """The device planned for, None for the one at hand."""
        return load_device(self.device) if self.device else None


@dataclass(frozen=True)
class StepCosts:
    """A captured step, its step graph, how its storages may be encoded, and what all that costs: what stays the same
    while `.grad` comes and goes. sensitivity: of the gradient to what is approximate, if anything may be."""

    captured: Captured
    step: StepGraph
    codings: Mapping[int, tuple[Coding, ...]]
    costs: Mapping[str, Cost]
    options: Options
    device: torch.device
    name: str
    sensitivity: Sensitivity | None = None


@dataclass(frozen=True)
class Situation:
    """What is there when a step begins: the tensors by source, and which of them have a `.grad`."""

    tensors: Mapping[Source, torch.Tensor]
    grad_present: frozenset[Source]
    resident_bytes: int
    floor_bytes: int = 0


@dataclass(frozen=True)
class PosedStep:
    """A step in a situation, ready to be solved. step: with its gradients handed over as the situation has them."""

    costs: StepCosts = field(repr=False)
    situation: Situation
    step: StepGraph
    posed: Posed


@dataclass(frozen=True)
class PlannedStep:
    """A plan with the step it is for."""

    step: StepGraph
    posed: Posed
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
) -> StepCosts:
    """Captures a step and finds what its kernels cost. Raises CaptureError, MeasureError."""
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
        device=foreign,
    )
    step = run_passes(captured.graph, captured.mutations, is_random, options.fidelity)
    device = torch.device(preset.kind) if preset is not None else device_of(model, args, kwargs)
    codings = codings_of(step, allowed_at(options.fidelity), options.codecs or USUAL_FAMILIES)
    calls = [call for kernel in step.kernels if kernel.role == "compute" for call in kernel.calls]
    calls += [call for several in codings.values() for one in several for call in (one.encode, one.decode)]
    told = (
        (lambda done, total, name: progress(0.1 + 0.5 * done / max(total, 1), f"measuring {name}"))
        if progress
        else None
    )
    costs = measure_costs(calls, device, options.costs, preset, told)
    return StepCosts(captured, step, codings, costs, options, device, type(model).__name__)


def capture_and_pose(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    optimizer: torch.optim.Optimizer | None = None,
    progress: Progress | None = None,
) -> PosedStep:
    """The scheduling problem of a step in the situation that there is now. Raises CaptureError, MeasureError."""
    costs = capture_step(model, args, kwargs, options, progress)
    situation = situation_of(model, args, kwargs, options, costs.device, costs.captured.constants, optimizer)
    costs = calibrated(costs, situation, progress)
    return PosedStep(costs, situation, *pose_step(costs, situation))


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
    step, posed = pose_step(replace(costs, codings={}), situation)
    plan = Portfolio().frontier(posed.problem, 2)[-1]
    found = sensitivity_of(
        step,
        posed,
        plan.schedule,
        situation.tensors,
        costs.codings,
        _batch(situation),
        costs.device,
        costs.options.error_budget,
    )
    notes = costs.captured.notes
    if costs.codings and not found.own_variance > 0:
        notes = (*notes, "nothing is kept approximately: the sample shows no finite variance of the gradient")
    captured = replace(costs.captured, notes=notes)
    return replace(costs, captured=captured, codings=found.codings, sensitivity=found)


def _batch(situation: Situation) -> tuple[int, int]:
    """How many samples the inputs have, and how many tokens each: the first two dimensions of the first of them, if it
    is one of ids [samples, tokens] or of vectors [samples, tokens, features]; a picture has no tokens."""
    for source, tensor in situation.tensors.items():
        if source.kind == "input" and tensor.dim():
            has_tokens = tensor.dim() == (3 if tensor.is_floating_point() else 2)
            return tensor.shape[0], tensor.shape[1] if has_tokens else 1
    return 1, 1


def device_of(model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> torch.device:
    """The device of the module's first parameter, or of the first tensor among the arguments; meta counts as CPU."""
    inputs, _ = flatten((args, kwargs), "argument")
    first = next(iter([*model.parameters(), *model.buffers(), *inputs]), torch.empty(0))
    return torch.device("cpu") if first.device.type == "meta" else first.device


def situation_of(
    model: torch.nn.Module,
    args: tuple,
    kwargs: dict[str, Any],
    options: Options,
    device: torch.device,
    constants: tuple[torch.Tensor, ...],
    optimizer: torch.optim.Optimizer | None = None,
) -> Situation:
    """What is there when the step begins on these arguments.

    constants: tensors that the module holds without registering them; optimizer: the one that steps afterwards.
    """
    kwargs, _ = bind(model, args, kwargs)
    inputs, structure = flatten((args, kwargs), "argument")
    tensors = Owners(model).sources(inputs, structure)
    tensors |= {Source("constant", str(i), i): constant for i, constant in enumerate(constants)}
    # A tensor that is no leaf has no .grad of its own: asking for it warns.
    grads = {source: t.grad for source, t in tensors.items() if t.is_leaf and t.grad is not None}
    granularity = rounding_bytes(device, options.preset())
    resident_bytes = _storage_bytes([*tensors.values(), *grads.values()], granularity)
    floor_bytes = 0
    if optimizer is not None:
        needs = optimizer_needs(optimizer, device)
        resident_bytes += needs.state_bytes
        trained = [t for t in tensors.values() if t.requires_grad and t.is_leaf and t.grad is None]
        floor_bytes = resident_bytes + sum(t.numel() * t.element_size() for t in trained) + needs.scratch_bytes
    return Situation(tensors, frozenset(grads), resident_bytes, floor_bytes)


def _storage_bytes(tensors: Iterable[torch.Tensor], rounding_bytes: int) -> int:
    """Bytes of the distinct allocations behind tensors."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    return sum(-(-size // rounding_bytes) * rounding_bytes for size in storages.values())


def pose_step(costs: StepCosts, situation: Situation) -> tuple[StepGraph, Posed]:
    """The scheduling problem of a captured step in a situation."""
    captured = costs.captured
    step = hand_over_gradients(costs.step, captured.graph, captured.gradients, situation.grad_present)

    def cost_of(call: Any) -> tuple[float, int]:
        cost = costs.costs[signature(call)]
        return cost.seconds, cost.working_bytes

    preset = costs.options.preset()
    posed = pose(
        step,
        cost_of,
        resident_bytes=situation.resident_bytes,
        codings=costs.codings,
        grad_present=situation.grad_present,
        error_budget=costs.options.error_budget if costs.options.fidelity == "approximate" else 0.0,
        state_bytes=_CPU_STATE_BYTES if costs.device.type == "cpu" else 0,
        floor_bytes=situation.floor_bytes,
        rounding_bytes=rounding_bytes(costs.device, preset),
        name=costs.name,
        costs=costs.options.costs,
        notes=(*captured.notes, *_told_savings(costs.step.savings)),
    )
    return step, posed


def _told_savings(savings: Iterable[Saving]) -> Iterator[str]:
    """What each pass took back."""
    saved: dict[str, int] = {}
    for one in savings:
        saved[one.name] = saved.get(one.name, 0) + one.saved_bytes
    for name, saved_bytes in saved.items():
        if saved_bytes > 0:
            yield f"{name}: backward reads {format_bytes(saved_bytes)} less of forward"


def rounding_bytes(device: torch.device, preset: DevicePreset | None) -> int:
    """The granularity of the allocator."""
    if preset is not None:
        return preset.allocator_rounding_bytes
    return 512 if device.type == "cuda" else 1


def solve_step(
    costs: StepCosts,
    step: StepGraph,
    posed: Posed,
    budget: int | str,
    portfolio: Portfolio,
    progress: Progress | None = None,
    given_plan: Plan | None = None,
) -> PlannedStep:
    """The plan of a posed step. Raises BudgetError, InfeasibleBudget.

    given_plan: is taken instead of solving; PlanError if it is for another step or peaks above the budget here.
    """
    problem = posed.problem
    budget_bytes = _budget_bytes(budget, problem)
    if given_plan is not None:
        return PlannedStep(step, posed, _taken(given_plan, problem, budget_bytes), costs)
    told = (lambda share, text: progress(0.6 + 0.4 * share, text)) if progress else None
    options = costs.options
    plan = portfolio.solve(problem, budget_bytes, options.solver, told, options.time_limit_seconds)
    return PlannedStep(step, posed, plan, costs)


def _budget_bytes(budget: int | str, problem: Problem) -> int:
    """A budget in bytes; a share is one of the peak with everything kept."""
    wanted = parse_bytes(budget)
    if not isinstance(wanted, Share):
        return wanted
    return int(wanted.fraction * max(baseline_of(problem).peak_bytes, problem.floor_bytes))


def _taken(given: Plan, problem: Problem, budget_bytes: int) -> Plan:
    """A plan that was made elsewhere, simulated with the costs found here."""
    difference = problem.first_difference(given.problem)
    if difference is not None:
        raise PlanError(
            f"the plan was made for another step: {difference}; pass the options and inputs that it was made with, or "
            "make a new one"
        )
    _check_errors(given, problem)
    allowed = replace(problem, error_budget=problem.error_budget * _ERROR_SLACK)
    try:
        plan = make_plan(allowed, given.schedule, solver=given.solver, budget_bytes=budget_bytes, notes=given.notes)
    except ScheduleError as error:
        raise PlanError(f"the plan cannot be taken over: {error}; make a new one") from error
    if plan.peak_bytes > budget_bytes:
        raise PlanError(
            f"the plan peaks at {format_bytes(plan.peak_bytes)} here, above the budget of "
            f"{format_bytes(budget_bytes)}: "
            f"it was made for {format_bytes(given.peak_bytes)}; raise the budget or make a new plan"
        )
    return plan


def _check_errors(given: Plan, problem: Problem) -> None:
    """Raises PlanError if the codes of a plan add more here than they may."""
    added = problem.error_of(given.encoded)
    if not added <= problem.error_budget * _ERROR_SLACK:
        told = f"{added:.2g} of" if isfinite(added) else "more than can be told to"
        raise PlanError(
            f"the plan's codes add {told} the gradient's own variance on these inputs, where error_budget="
            f"{problem.error_budget:g} and a quarter of it are allowed; they were planned to add "
            f"{given.encoding_error:.2g}: raise error_budget or make a new plan"
        )
