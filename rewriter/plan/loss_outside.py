"""Counts the bytes that a caller's loss takes between forward and backward, where the outputs are not a loss yet.

The usual losses of eager have at most four tensors of the output's shape alive at once, next to the output.
`square().mean()` has four, cross-entropy three and `mse_loss` two, each with the output's incoming gradient. In half
precision there are up to three in float32, of a loss computed in it. They are alive after forward has ended and before
the step's backward begins. The loss itself and its gradient add two numbers.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ...solvers.problem.plan import Plan
from ...solvers.problem.problem import Problem
from ...solvers.problem.simulate import baseline_of, simulate
from ...solvers.problem.units import rounded_up
from ..capture.captured_step import CapturedStep
from ..text.byte_sizes import format_bytes

_MOST_TENSORS = 4  # of the output's shape and dtype
_MOST_IN_FLOAT32 = 3
_FLOAT32_BYTES = 4
_NUMBERS_BYTES = 2 * _FLOAT32_BYTES


def room_bytes(captured: CapturedStep, granularity: int = 1) -> int:
    """Return the most bytes that the losses on a step's outputs take in addition to the incoming gradients.

    The result is 0 where gradients arrive at scalars only: then the loss is part of the step. Losses on several outputs
        each keep a tensor for their backward, or the incoming gradient made from it. One of them at a time has all of
        its tensors.
    granularity: the allocator's granularity in bytes.
    """
    arriving = [
        node.meta["val"]
        for node in captured.graph.graph.nodes
        if node.op == "placeholder" and node.meta["source"].kind == "tangent" and node.meta["val"].numel() > 1
    ]
    if not arriving:
        return 0
    kept = sum(_kept_bytes(tensor) - tensor.nbytes + _NUMBERS_BYTES for tensor in arriving)
    room = kept + max(_most_bytes(tensor) - _kept_bytes(tensor) for tensor in arriving)
    return rounded_up(room, granularity)


def with_room(problem: Problem, room: int) -> Problem:
    """Return the problem with `room` more bytes taken where the incoming gradients arrive."""
    if not room:
        return problem
    ops = list(problem.ops)
    for index, op in enumerate(ops):
        if op.kind == "tangent":
            made_bytes = sum(problem.values[value].size_bytes for value in op.makes)
            ops[index] = replace(op, working_bytes=max(op.working_bytes, made_bytes) + room)
    return replace(problem, ops=tuple(ops))


def peak_with_room(plan: Plan, room: int) -> int:
    """Return the peak of a plan together with the loss outside, in bytes."""
    if not room:
        return plan.peak_bytes
    return max(simulate(with_room(plan.problem, room), plan.schedule).peak_bytes, plan.problem.floor_bytes)


def everything_kept_bytes(problem: Problem, room: int) -> int:
    """Return the peak of a step with everything kept, including the loss outside and the optimizer's own step."""
    return max(baseline_of(with_room(problem, room)).peak_bytes, problem.floor_bytes)


def note_of(plan: Plan, room: int, budget_bytes: int) -> tuple[str, ...]:
    """Describe the part of a plan's budget left for a loss outside; empty where no loss outside is expected."""
    if not room:
        return ()
    if peak_with_room(plan, room) <= budget_bytes:
        return (f"{format_bytes(room)} of the budget are left for a loss computed outside of the module",)
    return (
        f"the budget holds for the module's own step: a loss outside of it, which usually takes up to "
        f"{format_bytes(room)}, may exceed it; compute the loss in the module, or raise the budget",
    )


def _kept_bytes(tensor: torch.Tensor) -> int:
    return max(tensor.nbytes, tensor.numel() * _FLOAT32_BYTES)


def _most_bytes(tensor: torch.Tensor) -> int:
    return max(_MOST_TENSORS * tensor.nbytes, _MOST_IN_FLOAT32 * tensor.numel() * _FLOAT32_BYTES)
