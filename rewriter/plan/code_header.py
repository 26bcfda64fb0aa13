"""Writes the comment at the head of generated code: the plan's peak, its budget and its cost."""

from __future__ import annotations

from ..text.byte_sizes import format_bytes
from ..text.source_text import comment
from .step_problem import PlannedStep


def header_of(planned: PlannedStep) -> str:
    """Return the header as a few comment lines."""
    plan = planned.plan
    lines = [f"One training step of {planned.measured.name}, rewritten by lowtide."]
    budget = f", budget {format_bytes(plan.budget_bytes)}" if plan.budget_bytes is not None else ""
    lines.append(
        f"Peak {format_bytes(plan.peak_bytes)}{budget}; with everything kept "
        f"{format_bytes(plan.baseline_peak_bytes)}. "
        f"Extra time {plan.extra_share:.1%} ({plan.costs})."
    )
    return "\n".join(map(comment, (*lines, *planned.mapping.problem.notes)))
