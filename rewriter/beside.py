"""Carries values that are off through backward beside the right ones, and tells how far off gradients end up."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from ..passes.step_graph import Kernel
from ..solvers.schedule import Schedule
from .replay import Replay
from .sources import Source

_CHUNK = 1 << 16  # elements that are squared in float64 at once


@dataclass(eq=False)
class Lane:
    """A backward in which one value of forward is another: `given` makes it of the right one.

    storage: of the value; readers: which operations, by number, read the other one. off: what differs now, by node.
    """

    storage: int
    readers: Container[int]
    given: Callable[[torch.Tensor], torch.Tensor]
    off: dict[fx.Node, torch.Tensor] = field(default_factory=dict, repr=False)


def errors_beside(
    replay: Replay, schedule: Schedule, lanes: Sequence[Lane]
) -> Iterator[tuple[Source, float, tuple[float, ...]]]:
    """Runs a schedule once; yields for each parameter's or input's gradient g: what it belongs to, ‖g‖², and for each
    lane ‖ĝ − g‖².

    Only kernels that a value of a lane reaches run again for it. What is alive besides the schedule's values are each
    lane's gradients on their way; gradients that are done are freed, unless they are read later.
    """
    of_forward: dict[int, fx.Node] = {}
    number_of = {id(kernel): number for number, kernel in enumerate(replay.posed.kernels)}
    for kernel, made in replay.run(schedule):
        number = number_of[id(kernel)]
        if kernel.phase == "forward":
            of_forward.update((replay.step.storage_of[node], node) for node in made)
        elif kernel.role == "compute":
            operands = set(replay.operands(kernel))
            for lane in lanes:
                _follow(replay, kernel, number, lane, of_forward.get(lane.storage), operands)
        elif kernel.role == "accumulate" and kernel.target is not None:
            right = replay.value(kernel.calls[0])
            squares = tuple(_squared_error(replay, kernel.calls[0], right, lane) for lane in lanes)
            yield kernel.target.meta["source"], energy_of(right), squares
            del right
            replay.release(number)


def energy_of(tensor: torch.Tensor) -> float:
    """‖tensor‖², summed up in float64."""
    parts = tensor.flatten().split(_CHUNK) if tensor.numel() else ()
    return sum(float(part.double().square_().sum()) for part in parts)


def _follow(
    replay: Replay, kernel: Kernel, number: int, lane: Lane, node: fx.Node | None, operands: set[fx.Node]
) -> None:
    """Runs a kernel again where it reads what is off in a lane."""
    lane.off = {n: tensor for n, tensor in lane.off.items() if n in replay.made}
    instead = {n: tensor for n, tensor in lane.off.items() if n in operands}
    if node in operands and number in lane.readers:
        instead[node] = lane.given(replay.made[node])  # pyright: ignore[reportArgumentType]
    if instead:
        found = replay.results(kernel, instead, again=True)
        lane.off.update((n, tensor) for n, tensor in found.items() if tensor.is_floating_point())


def _squared_error(replay: Replay, node: fx.Node, right: torch.Tensor, lane: Lane) -> float:
    lane.off = {n: tensor for n, tensor in lane.off.items() if n in replay.made}
    found = replay.value(node, lane.off) if lane.off else right
    return 0.0 if found is right else energy_of(found - right)
