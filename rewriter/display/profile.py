"""Profiles the bytes and the seconds of a training step, module by module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import torch

from ...passes.build_problem import ProblemMapping
from ...passes.calls import call_signature
from ...passes.pipeline import find_further_savings
from ...passes.savings import Saving
from ...passes.step_kernels import ComputeKernel, Kernel
from ...solvers.keep_all import KeepAll
from ...solvers.problem.module_names import merged_name, pattern_of, plain_operation, shortened
from ...solvers.problem.plan import Plan
from ...solvers.problem.problem import Problem
from ...solvers.problem.simulate import make_plan
from ..plan.measured_step import MeasuredStep
from ..plan.options import OptionArguments, Options, shows_options
from ..plan.planner import StepPlanner
from ..plan.progress import shown_progress
from .memory_timeline import Peak, peak_of


@dataclass(frozen=True)
class ModuleProfile:
    """The share of one module.

    module: the name of the module.
    kept_bytes: the bytes that it keeps for backward.
    forward_seconds, backward_seconds: the seconds of its kernels.
    flops: the operations of its kernels.
    kernels: the number of its kernels.
    """

    module: str
    kept_bytes: int
    forward_seconds: float
    backward_seconds: float
    flops: int
    kernels: int


@dataclass(frozen=True)
class KeptKind:
    """The values kept for backward that one kind of operation makes in modules of one pattern.

    operation: the operation.
    module: the merged name of the modules.
    values: the number of values.
    total_bytes: the bytes of all values.
    """

    operation: str
    module: str
    values: int
    total_bytes: int


@dataclass(frozen=True)
class PassSaving:
    """The bytes that a pass saves in modules of one pattern.

    name: the name of the pass.
    fidelity: the fidelity that the pass needs.
    module: the merged name of the modules.
    saved_bytes: the bytes saved.
    taken: whether the pass was run, as bitwise passes are.
    """

    name: str
    fidelity: str
    module: str
    saved_bytes: int
    taken: bool


@dataclass(frozen=True)
class Profile:
    """A step with everything kept.

    name: the name of the model.
    plan: the simulation of the step.
    rows: the share of each module.
    parameter_bytes, buffer_bytes, input_bytes: the resident bytes.
    kept_bytes: the bytes kept for backward.
    returned_bytes: the bytes of the outputs.
    peak: the fullest moment.
    largest: the kinds of values that take most of the kept bytes.
    savings: the savings of passes.
    costs: the source of the seconds.
    notes: the notes of the captured step.
    """

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
        """Return plain numbers and texts, for JSON."""
        payload = {name: value for name, value in vars(self).items() if name not in ("plan", "rows")}
        payload |= {"peak": self.peak.to_dict(), "largest": [asdict(kind) for kind in self.largest]}
        payload |= {"savings": [asdict(saving) for saving in self.savings]}
        payload |= {"peak_bytes": self.plan.peak_bytes, "seconds": self.plan.seconds, "notes": list(self.notes)}
        return payload | {"modules": [asdict(row) for row in self.rows]}


@shows_options
def profile(
    model: torch.nn.Module,
    args: tuple | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    depth: int | None = None,
    **options: Unpack[OptionArguments],
) -> Profile:
    """Profile one training step of a module without running it.

    depth: the number of names of a module's path that distinguish rows; by default up to the first number (`h.3`).
    options: the options of `rewrite`.
    """
    args, kwargs = tuple(args or ()), dict(kwargs or {})
    with shown_progress(f"profiling {type(model).__name__}") as progress:
        planner, present = StepPlanner.of(model, args, kwargs, Options.of("profile", options), progress=progress)
    measured, mapping = planner.measured, planner.variants(present).as_captured.mapping
    problem = mapping.problem
    plan = make_plan(problem, KeepAll().schedule(problem, 0), solver="keep_all")
    kept = set(plan.kept)
    bytes_of: dict[str, int] = dict.fromkeys(("parameter", "buffer", "input", "constant"), 0)
    for source, tensor in present.tensors.items():
        bytes_of[source.kind] += tensor.numel() * tensor.element_size()
    returned = {mapping.value_of[measured.step.storage_of[n]] for n in measured.step.outputs}
    return Profile(
        name=measured.name,
        plan=plan,
        rows=_rows(measured, mapping, kept, depth),
        parameter_bytes=bytes_of["parameter"],
        buffer_bytes=bytes_of["buffer"],
        input_bytes=bytes_of["input"],
        kept_bytes=sum(problem.values[v].size_bytes for v in kept),
        returned_bytes=sum(problem.values[v].size_bytes for v in returned if not problem.values[v].resident),
        peak=peak_of(plan),
        largest=_largest(problem, kept),
        savings=_savings(measured),
        costs=problem.costs,
        notes=measured.captured.notes,
    )


def _rows(
    measured: MeasuredStep, mapping: ProblemMapping, kept: set[int], depth: int | None
) -> tuple[ModuleProfile, ...]:
    """Return one row per group of modules, in the order of forward."""
    totals: dict[str, list[float]] = {}
    for kernel, op in zip(mapping.kernels, mapping.problem.ops, strict=True):
        row = totals.setdefault(shortened(kernel.module, depth), [0, 0.0, 0.0, 0, 0])
        row[0] += sum(mapping.problem.values[v].size_bytes for v in op.makes if v in kept)
        row[1 if kernel.phase == "forward" else 2] += op.seconds
        row[3] += _flops(measured, kernel)
        row[4] += isinstance(kernel, ComputeKernel)
    return tuple(
        ModuleProfile(name or "(root)", int(kept_bytes), forward, backward, int(flops), int(kernels))
        for name, (kept_bytes, forward, backward, flops, kernels) in totals.items()
        if kernels
    )


def _largest(problem: Problem, kept: set[int], count: int = 12) -> tuple[KeptKind, ...]:
    """Return the kinds of values that take most of the kept bytes, largest first."""
    groups: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for value in kept:
        op = problem.ops[problem.maker[value]]
        kind = plain_operation(op.name), pattern_of(op.module)
        groups.setdefault(kind, []).append((op.module, problem.values[value].size_bytes))
    kinds = [
        KeptKind(operation, merged_name([name for name, _ in members]), len(members), sum(size for _, size in members))
        for (operation, _), members in groups.items()
    ]
    return tuple(sorted(kinds, key=lambda kind: (-kind.total_bytes, kind.module, kind.operation))[:count])


def _savings(measured: MeasuredStep) -> tuple[PassSaving, ...]:
    """Return the savings of the passes that ran and of those that would round, by patterns of module names."""
    further = find_further_savings(measured.captured.graph, measured.options.fidelity)
    groups: dict[tuple[str, str, str, bool], list[Saving]] = {}
    for savings, taken in ((measured.step.savings, True), (further, False)):
        for saving in savings:
            groups.setdefault((saving.name, saving.fidelity, pattern_of(saving.module), taken), []).append(saving)
    return tuple(
        PassSaving(
            name,
            fidelity,
            merged_name([saving.module for saving in members]),
            sum(saving.saved_bytes for saving in members),
            taken,
        )
        for (name, fidelity, _, taken), members in groups.items()
    )


def _flops(measured: MeasuredStep, kernel: Kernel) -> int:
    if not isinstance(kernel, ComputeKernel):
        return 0
    return sum(measured.costs[call_signature(call)].flops for call in kernel.measured_calls)
