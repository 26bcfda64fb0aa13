"""Summarizes a plan for each module: the bytes kept for backward and the kernels that are recomputed."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ...solvers.keep_all import KeepAll
from ...solvers.problem.module_names import shortened
from ...solvers.problem.plan import Plan
from ...solvers.problem.schedule import Run
from ...solvers.problem.simulate import make_plan


@dataclass(frozen=True)
class ModuleSummary:
    """The summary of one module.

    module: the name of the module.
    kept_bytes: the bytes that the plan keeps for backward: of its values, or of their codes.
    all_bytes: the bytes that are kept with everything kept. A plan may keep more: values to recompute others from.
    kernels: the number of kernels in forward.
    kernels_again: the number of those kernels that run a second time.
    extra_seconds: the time of the second runs.
    """

    module: str
    kept_bytes: int
    all_bytes: int
    kernels: int
    kernels_again: int
    extra_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts, for JSON."""
        return asdict(self)


def module_summaries(plan: Plan, depth: int | None = None) -> list[ModuleSummary]:
    """Return one summary per module, in the order of forward.

    depth: the number of names of a module's path, as in `shortened`.
    """
    problem = plan.problem
    names = [shortened(op.module, depth) or "(root)" for op in problem.ops]
    runs = Counter(i.op for i in plan.schedule.instructions if isinstance(i, Run))
    kept_bytes, all_bytes, kernels, recomputed = Counter(), Counter(), Counter(), Counter()
    extra_seconds: dict[str, float] = {}
    everything = make_plan(problem, KeepAll().schedule(problem, 0), solver="keep_all")
    for totals, values in ((kept_bytes, plan.kept), (all_bytes, everything.kept)):
        for value in values:
            # Returned values are present in every plan.
            if not problem.values[value].held:
                totals[names[problem.maker[value]]] += problem.values[value].size_bytes
    for value, encoding in plan.kept_codes:
        kept_bytes[names[problem.maker[value]]] += problem.values[value].encodings[encoding].size_bytes
    for index, op in enumerate(problem.ops):
        repetitions = runs[index] - 1
        kernels[names[index]] += index < problem.forward_length
        recomputed[names[index]] += repetitions > 0
        extra_seconds[names[index]] = extra_seconds.get(names[index], 0.0) + max(repetitions, 0) * op.seconds
    return [
        ModuleSummary(name, kept_bytes[name], all_bytes[name], kernels[name], recomputed[name], extra_seconds[name])
        for name in dict.fromkeys(names[: problem.forward_length])
    ]
