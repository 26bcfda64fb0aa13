"""What a plan does with each module: the bytes it keeps for backward, and what it runs again."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ...solvers.keep_all import KeepAll
from ...solvers.problem.plan import Plan
from ...solvers.problem.schedule import Run
from ...solvers.problem.simulate import make_plan
from ..text.module_names import shortened
from .memory_timeline import kept_values


@dataclass(frozen=True)
class ModuleSummary:
    """One module: kept_bytes of the all_bytes that are kept when nothing is dropped, and how much runs again.

    kernels: how many of forward; kernels_again: how many of them run a second time, which takes extra_seconds.
    """

    module: str
    kept_bytes: int
    all_bytes: int
    kernels: int
    kernels_again: int
    extra_seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return asdict(self)


def module_summaries(plan: Plan, depth: int | None = None) -> list[ModuleSummary]:
    """One summary per module, in the order of forward; depth as in `shortened`."""
    problem = plan.problem
    names = [shortened(op.module, depth) or "(root)" for op in problem.ops]
    runs = Counter(i.op for i in plan.schedule.instructions if isinstance(i, Run))
    kept_bytes, all_bytes, kernels, again = Counter(), Counter(), Counter(), Counter()
    extra_seconds: dict[str, float] = {}
    everything = make_plan(problem, KeepAll().schedule(problem, 0), solver="keep_all")
    for told, values in ((kept_bytes, kept_values(plan)), (all_bytes, kept_values(everything))):
        for value in values:
            # What is returned is there whatever the plan does.
            if not problem.values[value].held:
                told[names[problem.maker[value]]] += problem.values[value].size_bytes
    for index, op in enumerate(problem.ops):
        more = runs[index] - 1
        kernels[names[index]] += index < problem.forward_length
        again[names[index]] += more > 0
        extra_seconds[names[index]] = extra_seconds.get(names[index], 0.0) + max(more, 0) * op.seconds
    return [
        ModuleSummary(name, kept_bytes[name], all_bytes[name], kernels[name], again[name], extra_seconds[name])
        for name in dict.fromkeys(names[: problem.forward_length])
    ]
