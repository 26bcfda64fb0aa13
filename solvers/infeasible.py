"""Explain why no schedule fits: the operation that needs the bytes, and what would lower them."""

from __future__ import annotations

from collections.abc import Sequence

from .candidates.pareto import Rated
from .problem.encoded_problem import merged_problem
from .problem.errors import InfeasibleBudget
from .problem.liveness import forecast, lives_of
from .problem.problem import Op, Problem
from .problem.units import format_bytes


def infeasible(
    problem: Problem, budget_bytes: int, smallest: Rated, proven: str | None = None, remarks: Sequence[str] = ()
) -> InfeasibleBudget:
    """Return the error for a budget under the smallest peak found, naming the operation that needs the bytes.

    smallest: the candidate with the lowest peak.
    proven: a solver's own cause, if it knows more.
    remarks: further sentences, such as which solvers were stopped.
    """
    largest_bytes, largest = largest_operation(problem)
    budget_text, smallest_text = format_bytes(budget_bytes), format_bytes(smallest.peak_bytes)
    if budget_text == smallest_text:
        budget_text, smallest_text = f"{budget_bytes:,} bytes", f"{smallest.peak_bytes:,} bytes"
    if largest is not None and largest_bytes > budget_bytes and largest_bytes > problem.floor_bytes:
        cause = f"{_describe_operation(problem, largest)} alone needs {format_bytes(largest_bytes)}"
    elif problem.floor_bytes > budget_bytes:
        cause = f"the optimizer's step needs {format_bytes(problem.floor_bytes)}"
    elif problem.resident_bytes > budget_bytes:
        cause = f"parameters, buffers, inputs and gradients alone take {format_bytes(problem.resident_bytes)}"
    elif proven is not None:
        cause = proven
    else:
        cause = ""
    if cause != proven and not (largest_bytes == smallest.peak_bytes > budget_bytes and cause):
        separator = ", " if cause else ""
        cause += f"{separator}the smallest peak found is {smallest_text}{_describe_peak(problem, smallest)}"
    hints = _hints(problem, smallest.peak_bytes)
    message = f"no schedule of {problem.name} fits {budget_text}: {'; '.join((cause, *remarks, _join(hints)))}"
    return InfeasibleBudget(message, smallest.peak_bytes, budget_bytes, hints)


def largest_operation(problem: Problem) -> tuple[int, int | None]:
    """Return the bytes and the number of the operation with the most bytes alive around it in every schedule.

    Alive in every schedule are resident values and held values made by earlier operations that run once. The values or
    codes that the operation reads and its working bytes are added. Only operations that run once are looked at, so the
    bytes are a lower bound. The number is None if no operation needs more than the resident bytes.
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


def _describe_peak(problem: Problem, smallest: Rated) -> str:
    merged = merged_problem(problem, smallest.choice)
    run = forecast(merged, smallest.order).peak_run
    return f", at {_describe_operation(merged, int(lives_of(merged, smallest.order).runs[run]))}" if run >= 0 else ""


def _describe_operation(problem: Problem, index: int) -> str:
    op: Op = problem.ops[index]
    phase = "backward" if index >= problem.forward_length else "forward"
    return f"{op.module}'s {phase} ({op.name})" if op.module else f"{op.name} ({phase})"


def _hints(problem: Problem, peak_bytes: int) -> tuple[str, ...]:
    hints = ["raise the budget", "lower the batch"]
    # gradients that a fused loss makes in forward are held too; operations without results accumulate them into .grad
    accumulated = {value for op in problem.ops[problem.forward_length :] if not op.makes for value in op.reads}
    returned = sum(
        problem.values[value].size_bytes
        for op in problem.ops[: problem.forward_length]
        for value in op.makes
        if problem.values[value].held and value not in accumulated
    )
    if returned > peak_bytes // 100:
        size = format_bytes(returned)
        hints.append(f'pass outputs=["loss"] if a returned loss is all you need (returned outputs hold {size})')
    return tuple(hints)


def _join(hints: tuple[str, ...]) -> str:
    *first, last = hints
    return ", ".join(first) + ("," if len(hints) > 2 else "") + " or " + last
