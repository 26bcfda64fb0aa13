"""Carries values that are off through backward beside the right ones, and tells how far off gradients end up."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from ...passes.sources import Source
from ...passes.step_graph import Kernel
from ...solvers.problem.schedule import Schedule
from .replay import Replay

CARRIED = torch.bfloat16
"""In which noise on its way is kept: each time it is rounded that adds less than a hundred-thousandth of its energy."""
_CHUNK = 1 << 16  # elements that are squared in float64 at once


@dataclass(eq=False)
class PerturbedRun:
    """A backward in which some values of forward are others: `given` makes each of the right one, by its storage.

    readers: which operations, by number, read the others. off: by how much what backward makes differs, by node.
    """

    given: Mapping[int, Callable[[torch.Tensor], torch.Tensor]]
    readers: Container[int]
    off: dict[fx.Node, torch.Tensor] = field(default_factory=dict, repr=False)


def errors_alongside(
    replay: Replay, schedule: Schedule, perturbed_runs: Sequence[PerturbedRun]
) -> Iterator[tuple[Source, float, tuple[float, ...]]]:
    """Runs a schedule once; yields for each parameter's or input's gradient g: what it belongs to, ‖g‖², and for each
    lane ‖ĝ − g‖².

    Only kernels that a value of a lane reaches run again for it. What is alive besides the schedule's values is what
    differs in each lane, in half of its bytes; gradients that are done are freed, unless they are read later.
    """
    of_forward: dict[int, fx.Node] = {}
    number_of = {id(kernel): number for number, kernel in enumerate(replay.posed.kernels)}
    for kernel, made in replay.run(schedule):
        number = number_of[id(kernel)]
        if kernel.phase == "forward":
            of_forward.update((replay.step.storage_of[node], node) for node in made)
        elif kernel.role == "compute":
            again, operands = Again(replay, kernel, made), set(replay.operands(kernel))
            for lane in perturbed_runs:
                read = lane.given if number in lane.readers else ()
                others = {of_forward[s]: s for s in read if of_forward.get(s) in operands}
                _follow(again, lane, others, operands)
        elif kernel.role == "accumulate" and kernel.target is not None:
            right = energy_of(replay.value(kernel.calls[0]))
            squares = tuple(_squared_error(replay, kernel.calls[0], lane) for lane in perturbed_runs)
            yield kernel.target.meta["source"], right, squares
            replay.release(number)


def energy_of(tensor: torch.Tensor, less: torch.Tensor | None = None) -> float:
    """‖tensor‖², or ‖tensor − less‖², summed up in float64."""
    if not tensor.numel():
        return 0.0
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)  # as it lies: flattened without a copy
    parts = tensor.permute(order).flatten().split(_CHUNK)
    if less is None:
        return sum(float(part.double().square_().sum()) for part in parts)
    others = less.permute(order).flatten().split(_CHUNK)
    return sum(float(one.double().sub_(other).square_().sum()) for one, other in zip(parts, others, strict=True))


def carried(right: torch.Tensor, off: torch.Tensor) -> torch.Tensor:
    """What differs by `off` from what is right, in its dtype."""
    return (right + off).to(right.dtype)


class Again:
    """A kernel that has run, and made what `made` tells, to be run with other operands."""

    def __init__(self, replay: Replay, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        self.replay, self.kernel, self.made = replay, kernel, made
        inside = set(kernel.calls)
        read = (replay.value(node) for call in kernel.calls for node in call.all_input_nodes if node not in inside)
        held = {value.untyped_storage().data_ptr() for value in read if isinstance(value, torch.Tensor)}
        self._aliased = any(tensor.untyped_storage().data_ptr() in held for tensor in made.values())

    def differences(self, instead: dict[fx.Node, torch.Tensor]) -> Iterator[tuple[fx.Node, torch.Tensor]]:
        """By how much what it makes differs with other operands: tensors that nobody else holds.

        Empties `instead` once it has run, so that operands need not stay.
        """
        found = self.replay.results(self.kernel, instead, again=True)
        instead.clear()
        while found:
            node, other = found.popitem()
            if other.is_floating_point():
                yield node, other - self.made[node] if self._aliased else other.sub_(self.made[node])


def _follow(again: Again, lane: PerturbedRun, others: Mapping[fx.Node, int], operands: set[fx.Node]) -> None:
    """Runs a kernel again where it reads what is off in a lane. others: values of forward that are, with storages."""
    made = again.replay.made
    lane.off = {node: off for node, off in lane.off.items() if node in made}
    instead = {node: carried(made[node], off) for node, off in lane.off.items() if node in operands}
    instead.update((node, lane.given[storage](made[node])) for node, storage in others.items())
    if instead:
        lane.off.update((node, off.to(CARRIED)) for node, off in again.differences(instead))


def _squared_error(replay: Replay, node: fx.Node, lane: PerturbedRun) -> float:
    base = base_of(replay, node)
    return energy_of(replay.value(node, lane.off)) if base in lane.off else 0.0


def base_of(replay: Replay, node: fx.Node) -> fx.Node:
    """What a node is a view of among all that has been made."""
    while node not in replay.made and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node
