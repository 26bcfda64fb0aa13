"""Propagate perturbed values through backward alongside the exact ones, and measure the errors of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from ...passes.sources import Source
from ...passes.step_kernels import ComputeKernel, GradAccumulate
from ...solvers.problem.schedule import Schedule
from .replay import Replay

CARRIED = torch.bfloat16
"""The dtype of noise during propagation: each rounding adds less than a hundred-thousandth of its energy."""
_CHUNK = 1 << 16  # elements that are squared in float64 at once


@dataclass(eq=False)
class PerturbedRun:
    """A backward in which some values of forward are perturbed.

    replacements: functions, by storage, that make the perturbed value from the exact one.
    readers: the operations, by number, that read perturbed values.
    deviations: the differences of perturbed values of backward from the exact ones, by node.
    """

    replacements: Mapping[int, Callable[[torch.Tensor], torch.Tensor]]
    readers: Container[int]
    deviations: dict[fx.Node, torch.Tensor] = field(default_factory=dict, repr=False)


def errors_alongside(
    replay: Replay, schedule: Schedule, perturbed_runs: Sequence[PerturbedRun]
) -> Iterator[tuple[Source, float, tuple[float, ...]]]:
    """Run a schedule once; yield for each parameter's or input's gradient g its source, ‖g‖², and each run's ‖ĝ − g‖².

    Only kernels that a perturbed value reaches are rerun. In addition to the schedule's values, the deviations of each
    run are alive, in half of their bytes. Finished gradients are freed, unless they are read later.
    """
    of_forward: dict[int, fx.Node] = {}
    number_of = {id(kernel): number for number, kernel in enumerate(replay.mapping.kernels)}
    for kernel, made in replay.run(schedule):
        number = number_of[id(kernel)]
        if kernel.phase == "forward":
            of_forward.update((replay.step.storage_of[node], node) for node in made)
        elif isinstance(kernel, ComputeKernel):
            rerun, operands = Rerun(replay, kernel, made), set(replay.operands(kernel))
            for perturbed in perturbed_runs:
                read = perturbed.replacements if number in perturbed.readers else ()
                perturbed_values = {of_forward[s]: s for s in read if of_forward.get(s) in operands}
                _follow(rerun, perturbed, perturbed_values, operands)
        elif isinstance(kernel, GradAccumulate):
            right = energy_of(replay.value(kernel.gradient))
            squares = tuple(_squared_error(replay, kernel.gradient, perturbed) for perturbed in perturbed_runs)
            yield kernel.target.meta["source"], right, squares
            replay.release(number)


def energy_of(tensor: torch.Tensor, less: torch.Tensor | None = None) -> float:
    """Return ‖tensor‖², or ‖tensor − less‖², summed in float64."""
    if not tensor.numel():
        return 0.0
    order = sorted(
        range(tensor.dim()), key=tensor.stride, reverse=True
    )  # in the order of memory, so that flattening does not copy
    parts = tensor.permute(order).flatten().split(_CHUNK)
    if less is None:
        return sum(float(part.double().square_().sum()) for part in parts)
    others = less.permute(order).flatten().split(_CHUNK)
    return sum(
        float(part.double().sub_(subtracted).square_().sum()) for part, subtracted in zip(parts, others, strict=True)
    )


def carried(right: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Return the exact value plus a deviation, in the dtype of the exact value."""
    return (right + deviation).to(right.dtype)


class Rerun:
    """A kernel that has run and made `made`, to be rerun with other operands."""

    def __init__(self, replay: Replay, kernel: ComputeKernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        self.replay, self.kernel, self.made = replay, kernel, made
        inside = set(kernel.calls)
        read = (replay.value(node) for call in kernel.calls for node in call.all_input_nodes if node not in inside)
        held = {value.untyped_storage().data_ptr() for value in read if isinstance(value, torch.Tensor)}
        self._aliased = any(tensor.untyped_storage().data_ptr() in held for tensor in made.values())

    def differences(self, instead: dict[fx.Node, torch.Tensor]) -> Iterator[tuple[fx.Node, torch.Tensor]]:
        """Yield the deviations of its results with other operands, as tensors that nothing else holds.

        Empties `instead` after the run, so that operands can be freed.
        """
        results = self.replay.results(self.kernel, instead, is_rerun=True)
        instead.clear()
        while results:
            node, perturbed = results.popitem()
            if perturbed.is_floating_point():
                yield node, perturbed - self.made[node] if self._aliased else perturbed.sub_(self.made[node])


def _follow(rerun: Rerun, perturbed: PerturbedRun, others: Mapping[fx.Node, int], operands: set[fx.Node]) -> None:
    """Rerun a kernel if it reads perturbed values.

    others: perturbed values of forward, with their storages.
    """
    made = rerun.replay.made
    perturbed.deviations = {node: deviation for node, deviation in perturbed.deviations.items() if node in made}
    instead = {
        node: carried(made[node], deviation) for node, deviation in perturbed.deviations.items() if node in operands
    }
    instead.update((node, perturbed.replacements[storage](made[node])) for node, storage in others.items())
    if instead:
        perturbed.deviations.update((node, deviation.to(CARRIED)) for node, deviation in rerun.differences(instead))


def _squared_error(replay: Replay, node: fx.Node, perturbed: PerturbedRun) -> float:
    base = base_of(replay, node)
    return energy_of(replay.value(node, perturbed.deviations)) if base in perturbed.deviations else 0.0


def base_of(replay: Replay, node: fx.Node) -> fx.Node:
    """Return the value that has been made of which a node is a view."""
    while node not in replay.made and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node
