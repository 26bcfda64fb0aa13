"""Where the bytes and the seconds of a training step go, module by module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ...passes.build_problem import ProblemMapping
from ...passes.pipeline import savings_beyond
from ...passes.savings import Saving
from ...passes.step_graph import Kernel
from ...solvers.keep_all import KeepAll
from ...solvers.problem.plan import Plan
from ...solvers.problem.problem import Problem
from ...solvers.problem.simulate import make_plan
from ..measure.costs import signature
from ..plan.progress import shown_progress
from ..plan.step import Options, StepCosts, capture_and_formulate
from ..text.module_names import one_name, pattern_of, plain_operation, shortened
from .memory_timeline import Peak, kept_values, peak_of


@dataclass(frozen=True)
class ModuleProfile:
    """One module's share: bytes it keeps for backward, seconds and operations of its kernels, their number."""

    module: str
    kept_bytes: int
    forward_seconds: float
    backward_seconds: float
    flops: int
    kernels: int


@dataclass(frozen=True)
class KeptKind:
    """Values kept for backward that alike operations in alike modules make: how many, and their bytes in all."""

    operation: str
    module: str
    values: int
    total_bytes: int


@dataclass(frozen=True)
class PassSaving:
    """What a pass takes back in alike modules, at which fidelity; `taken` where it has been, as it is bitwise."""

    name: str
    fidelity: str
    module: str
    saved_bytes: int
    taken: bool


@dataclass(frozen=True)
class Profile:
    """A step with everything kept. plan: its simulation; peak: where it is fullest; largest: most of what it keeps;
    savings: what passes take back."""

    name: str
    plan: Plan
    rows: tuple[ModuleProfile, ...]
    parameter_bytes: int
    buffer_bytes: int
    input_bytes: int
    kept_bytes: int
    returned_bytes: int
    peak: Peak
    largest: tuple[KeptKind, ...]
    savings: tuple[PassSaving, ...]
    costs: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        told = {name: value for name, value in vars(self).items() if name not in ("plan", "rows")}
        told |= {"peak": self.peak.to_dict(), "largest": [asdict(kind) for kind in self.largest]}
        told |= {"savings": [asdict(saving) for saving in self.savings]}
        told |= {"peak_bytes": self.plan.peak_bytes, "seconds": self.plan.seconds, "notes": list(self.notes)}
        return told | {"modules": [asdict(row) for row in self.rows]}


def profile(
    model: torch.nn.Module,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    depth: int | None = None,
    costs: str = "measured",
    device: str | None = None,
    outputs: Sequence[str] | None = None,
) -> Profile:
    """Profiles one training step of a module without running it.

    depth: how many names of a module's path tell rows apart; by default up to the first number (`h.3`).
    """
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    options = Options(costs=costs, device=device, outputs=tuple(outputs) if outputs is not None else None)
    with shown_progress(f"profiling {type(model).__name__}") as progress:
        found = capture_and_formulate(model, args, kwargs, options, progress=progress)
    step_costs, posed = found.costs, found.posed
    problem = posed.problem
    plan = make_plan(problem, KeepAll().schedule(problem, 0), solver="keep_all")
    kept = kept_values(plan)
    bytes_of: dict[str, int] = dict.fromkeys(("parameter", "buffer", "input", "constant"), 0)
    for source, tensor in found.situation.tensors.items():
        bytes_of[source.kind] += tensor.numel() * tensor.element_size()
    returned = {posed.value_of[step_costs.step.storage_of[n]] for n in step_costs.step.outputs}
    return Profile(
        name=step_costs.name,
        plan=plan,
        rows=_rows(step_costs, posed, kept, depth),
        parameter_bytes=bytes_of["parameter"],
        buffer_bytes=bytes_of["buffer"],
        input_bytes=bytes_of["input"],
        kept_bytes=sum(problem.values[v].size_bytes for v in kept),
        returned_bytes=sum(problem.values[v].size_bytes for v in returned if not problem.values[v].resident),
        peak=peak_of(plan),
        largest=_largest(problem, kept),
        savings=_savings(step_costs),
        costs=costs,
        notes=step_costs.captured.notes,
    )


def _rows(costs: StepCosts, posed: ProblemMapping, kept: set[int], depth: int | None) -> tuple[ModuleProfile, ...]:
    """One row per group of modules, in the order of forward."""
    told: dict[str, list[float]] = {}
    for kernel, op in zip(posed.kernels, posed.problem.ops, strict=True):
        row = told.setdefault(shortened(kernel.module, depth), [0, 0.0, 0.0, 0, 0])
        row[0] += sum(posed.problem.values[v].size_bytes for v in op.makes if v in kept)
        row[1 if kernel.phase == "forward" else 2] += op.seconds
        row[3] += _flops(costs, kernel)
        row[4] += kernel.role == "compute"
    return tuple(
        ModuleProfile(name or "(root)", int(kept_bytes), forward, backward, int(flops), int(kernels))
        for name, (kept_bytes, forward, backward, flops, kernels) in told.items()
        if kernels
    )


def _largest(problem: Problem, kept: set[int], count: int = 12) -> tuple[KeptKind, ...]:
    """What takes most of the kept bytes, largest first."""
    told: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for value in kept:
        op = problem.ops[problem.maker[value]]
        kind = plain_operation(op.name), pattern_of(op.module)
        told.setdefault(kind, []).append((op.module, problem.values[value].size_bytes))
    kinds = [
        KeptKind(operation, one_name([name for name, _ in found]), len(found), sum(size for _, size in found))
        for (operation, _), found in told.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: (-kind.total_bytes, kind.module, kind.operation))[:count])


def _savings(costs: StepCosts) -> tuple[PassSaving, ...]:
    """What passes have taken back, and what those would that round, by modules whose names differ in a number only."""
    further = savings_beyond(costs.captured.graph, costs.options.fidelity)
    told: dict[tuple[str, str, str, bool], list[Saving]] = {}
    for savings, taken in ((costs.step.savings, True), (further, False)):
        for one in savings:
            told.setdefault((one.name, one.fidelity, pattern_of(one.module), taken), []).append(one)
    return tuple(
        PassSaving(
            name, fidelity, one_name([one.module for one in found]), sum(one.saved_bytes for one in found), taken
        )
        for (name, fidelity, _, taken), found in told.items()
    )


def _flops(costs: StepCosts, kernel: Kernel) -> int:
    if kernel.role != "compute":
        return 0
    return sum(costs.costs[signature(call)].flops for call in kernel.measured_calls)
