"""Runs a schedule kernel by kernel on real tensors, where each kernel's operands can be looked at and exchanged."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from ...passes.build_problem import ProblemMapping
from ...passes.foreign_calls import calling
from ...passes.sources import Source
from ...passes.step_graph import Kernel, StepGraph, tensors_of
from ...solvers.problem.schedule import Free, Run, Schedule
from ..emit.program import Generator

Instead = Mapping[fx.Node, torch.Tensor]


class Replay:
    """A step in progress. `made` holds what is alive: the value of each call, and of each output of one with several.

    Nothing is computed in place and nothing of the user's is changed: buffers are copies. A random kernel that runs
    again draws what it drew; where the generator stands afterwards is the caller's matter.
    """

    def __init__(
        self, step: StepGraph, posed: ProblemMapping, tensors: Mapping[Source, torch.Tensor], device: torch.device
    ) -> None:
        self.step, self.posed, self.device = step, posed, device
        self.made: dict[fx.Node, torch.Tensor] = {}
        self._in_storage: dict[int, set[fx.Node]] = {}
        self._given = {source: t.detach().clone() if source.kind == "buffer" else t for source, t in tensors.items()}
        self._generator = Generator(device)
        self._states: dict[int, torch.Tensor] = {}
        self._started: set[int] = set()

    def run(
        self, schedule: Schedule, exchanged: Callable[[Kernel], Instead] = lambda kernel: {}
    ) -> Iterator[tuple[Kernel, dict[fx.Node, torch.Tensor]]]:
        """Carries the schedule out; yields each kernel that has run for the first time, with what it made.

        exchanged: what a kernel computes from in the place of what was made.
        """
        for instruction in schedule.instructions:
            if isinstance(instruction, Run):
                first = instruction.op not in self._started
                made = self._run(instruction.op, exchanged(self.posed.kernels[instruction.op]))
                if first:
                    yield self.posed.kernels[instruction.op], made
                self._keep(made)
            elif isinstance(instruction, Free):
                for node in self._in_storage.pop(self.posed.storages[instruction.value], ()):
                    self.made.pop(node, None)

    def release(self, op: int) -> None:
        """Frees what an operation has read, held or not, if no operation reads it later in trace order."""
        problem = self.posed.problem
        for value in problem.ops[op].reads:
            if problem.readers[value][-1] == op and not problem.values[value].resident:
                for node in self._in_storage.pop(self.posed.storages[value], ()):
                    self.made.pop(node, None)

    def operands(self, kernel: Kernel) -> list[fx.Node]:
        """What a kernel reads of the floating-point values that have been made, each once: not its views."""
        inside = set(kernel.calls)
        found: dict[fx.Node, None] = {}
        stack = [node for call in reversed(kernel.calls) for node in reversed(call.all_input_nodes)]
        while stack:
            node = stack.pop()
            if node in self.made:
                if self.made[node].is_floating_point():
                    found[node] = None
            elif node not in inside and node.op != "placeholder":
                stack += reversed(node.all_input_nodes)
        return list(found)

    def value(self, node: fx.Node, instead: Instead | None = None) -> Any:
        """What a node stands for. instead: tensors to compute it from, in the place of those that were made."""
        if instead and node in instead:
            return instead[node]
        if node in self.made:
            return self.made[node]
        if node.op == "placeholder":
            return self._given[node.meta["source"]]
        if node.target is operator.getitem:
            source, index = node.args
            assert isinstance(source, fx.Node)
            return self.value(source, instead)[index]
        return self._called(node, instead)

    def results(self, kernel: Kernel, instead: Instead | None = None, *, again: bool) -> dict[fx.Node, torch.Tensor]:
        """What a compute kernel makes, by the node that stands for it.

        instead: as in `value`; again: it has run before, so that buffers are not updated a second time.
        """
        changed = dict(instead or {})
        result: Any = None
        for call in kernel.calls:
            result = self._called(call, changed, kernel.updates if again else ())
            changed[call] = result
        last = kernel.calls[-1]
        if isinstance(result, torch.Tensor):
            return {last: result}
        return {node: result[node.args[1]] for node, _ in tensors_of(last)}  # pyright: ignore[reportArgumentType]

    def _called(self, call: fx.Node, instead: Instead | None, without: tuple[fx.Node, ...] = ()) -> Any:
        positional = [self._told(argument, instead, without) for argument in call.args]
        named = {name: self._told(argument, instead, without) for name, argument in call.kwargs.items()}
        return calling(call)(*positional, **named)

    def _told(self, argument: Any, instead: Instead | None, without: tuple[fx.Node, ...]) -> Any:
        # A function within `_called` that called itself would keep operands alive until garbage is collected.
        if isinstance(argument, fx.Node):
            return None if argument in without else self.value(argument, instead)
        if isinstance(argument, (list, tuple)):
            return [self._told(one, instead, without) for one in argument]
        return argument

    def _run(self, op: int, instead: Instead) -> dict[fx.Node, torch.Tensor]:
        kernel, again = self.posed.kernels[op], op in self._started
        self._started.add(op)
        if kernel.role == "tangent":
            return {base: self._tangent(base) for base in (self.step.storages[s].base for s in kernel.makes)}
        if kernel.role != "compute":
            return {}
        if not kernel.random:
            return self.results(kernel, instead, again=again)
        if not again:
            self._states[op] = self._generator.state()
            return self.results(kernel, instead, again=False)
        with self._generator.drawing_from(self._states[op]):
            return self.results(kernel, instead, again=True)

    def _tangent(self, base: fx.Node) -> torch.Tensor:
        """An incoming gradient: of a loss 1, of another output at random."""
        fake = base.meta["val"]
        tangent = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=self.device)
        return tangent.fill_(1) if fake.numel() == 1 else tangent.normal_()

    def _keep(self, made: Mapping[fx.Node, torch.Tensor]) -> None:
        for node, tensor in made.items():
            storage = self.step.storage_of[node]
            if node in self.step.overwrites:  # what lay there before
                for other in self._in_storage.pop(storage, ()):
                    self.made.pop(other, None)
            self.made[node] = tensor
            self._in_storage.setdefault(storage, set()).add(node)
