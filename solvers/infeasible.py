"""What to say when no schedule fits: what needs the bytes, and what would lower them."""

from __future__ import annotations

from collections.abc import Sequence

from .pareto import Rated
from .problem.encoded_problem import merged_problem
from .problem.errors import InfeasibleBudget
from .problem.liveness import forecast, lives_of
from .problem.problem import Op, Problem
from .problem.units import format_bytes


def infeasible(
    problem: Problem, budget_bytes: int, smallest: Rated, proven: str | None = None, beside: Sequence[str] = ()
) -> InfeasibleBudget:
    """The error for a budget under the smallest peak found, naming the operation that stands in the way.

    proven: what a solver says instead, if it knows more. beside: what else there is to say (who was stopped).
    """
    alone_bytes, alone = largest_operation(problem)
    asked, found = format_bytes(budget_bytes), format_bytes(smallest.peak_bytes)
    if asked == found:
        asked, found = f"{budget_bytes:,} bytes", f"{smallest.peak_bytes:,} bytes"
    if alone is not None and alone_bytes > budget_bytes and alone_bytes > problem.floor_bytes:
        cause = f"{_told(problem, alone)} alone needs {format_bytes(alone_bytes)}"
    elif problem.floor_bytes > budget_bytes:
        cause = f"the optimizer's step needs {format_bytes(problem.floor_bytes)}"
    elif problem.resident_bytes > budget_bytes:
        cause = f"parameters, buffers, inputs and gradients alone take {format_bytes(problem.resident_bytes)}"
    elif proven is not None:
        cause = proven
    else:
        cause = ""
    if cause != proven and not (alone_bytes == smallest.peak_bytes > budget_bytes and cause):
        cause += (", " if cause else "") + f"the smallest peak found is {found}{_peak_text(problem, smallest)}"
    hints = _hints(problem, smallest.peak_bytes)
    message = f"no schedule of {problem.name} fits {asked}: {'; '.join((cause, *beside, _joined(hints)))}"
    return InfeasibleBudget(message, smallest.peak_bytes, budget_bytes, hints)


def largest_operation(problem: Problem) -> tuple[int, int | None]:
    """(bytes, operation) of the operation that must run and has the most bytes alive around it in any schedule.

    Alive in any schedule: what is resident, held values made by operations that run once and earlier, what
    the operation reads (or codes that it reads themselves), what it needs to work. Only operations that
    cannot be left out are looked at: a lower bound.
    """
    most: tuple[int, int | None] = (problem.resident_bytes, None)
    held_before: dict[int, int] = {}
    for index, op in enumerate(problem.ops):
        if op.repeatable:
            continue
        reads = {value for value in op.reads if not problem.values[value].resident}
        made = sum(problem.values[value].size_bytes for value in op.makes)
        around = held_before | {value: problem.values[value].least_read_bytes for value in reads}
        reused = problem.values[op.reuses].size_bytes if op.reuses is not None else 0
        needs = problem.resident_bytes + sum(around.values()) + max(op.working_bytes, made) - reused
        if needs > most[0]:
            most = needs, index
        held_before |= {v: problem.values[v].size_bytes for v in op.makes if problem.values[v].held}
    return most


def _peak_text(problem: Problem, smallest: Rated) -> str:
    merged = merged_problem(problem, smallest.choice)
    run = forecast(merged, smallest.order).peak_run
    return f", at {_told(merged, int(lives_of(merged, smallest.order).runs[run]))}" if run >= 0 else ""


def _told(problem: Problem, index: int) -> str:
    op: Op = problem.ops[index]
    phase = "backward" if index >= problem.forward_length else "forward"
    return f"{op.module}'s {phase} ({op.name})" if op.module else f"{op.name} ({phase})"


def _hints(problem: Problem, peak_bytes: int) -> tuple[str, ...]:
    hints = ["raise the budget", "lower the batch"]
    # gradients that a fused loss makes in forward are held too; what makes nothing in backward hands them over
    handed_over = {value for op in problem.ops[problem.forward_length :] if not op.makes for value in op.reads}
    returned = sum(
        problem.values[value].size_bytes
        for op in problem.ops[: problem.forward_length]
        for value in op.makes
        if problem.values[value].held and value not in handed_over
    )
    if returned > peak_bytes // 100:
        hints.append(f'pass outputs=["loss"] (returned outputs hold {format_bytes(returned)})')
    return tuple(hints)


def _joined(hints: tuple[str, ...]) -> str:
    *first, last = hints
    return ", ".join(first) + ("," if len(hints) > 2 else "") + " or " + last
