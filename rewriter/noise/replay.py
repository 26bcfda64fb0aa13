"""Run a schedule kernel by kernel on real tensors, so that each kernel's operands can be read and replaced."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import fx

from ...passes.build_problem import ProblemMapping
from ...passes.foreign_calls import with_autocast
from ...passes.sources import Source
from ...passes.step_graph import StepGraph, tensors_of
from ...passes.step_kernels import ComputeKernel, Kernel, TangentArrival
from ...solvers.problem.schedule import Free, Run, Schedule
from ..emit.program import Generator

Instead = Mapping[fx.Node, torch.Tensor]


class Replay:
    """A step in progress.

    made: the live values of calls, and of each output of a call with several.

    Nothing is computed in place and no tensor of the user is changed: buffers are copied. A recomputed random kernel
    draws the same numbers. The caller restores the generator afterwards.
    """

    def __init__(
        self, step: StepGraph, mapping: ProblemMapping, tensors: Mapping[Source, torch.Tensor], device: torch.device
    ) -> None:
        self.step, self.mapping, self.device = step, mapping, device
        self.made: dict[fx.Node, torch.Tensor] = {}
        self._in_storage: dict[int, set[fx.Node]] = {}
        self._given = {source: t.detach().clone() if source.kind == "buffer" else t for source, t in tensors.items()}
        self._generator = Generator(device)
        self._states: dict[int, torch.Tensor] = {}
        self._started: set[int] = set()

    def run(
        self, schedule: Schedule, exchanged: Callable[[Kernel], Instead] = lambda kernel: {}
    ) -> Iterator[tuple[Kernel, dict[fx.Node, torch.Tensor]]]:
        """Run the schedule; yield each kernel after its first run, with the values that it made.

        exchanged: returns the replacements of a kernel's operands.
        """
        for instruction in schedule.instructions:
            if isinstance(instruction, Run):
                first = instruction.op not in self._started
                made = self._run(instruction.op, exchanged(self.mapping.kernels[instruction.op]))
                if first:
                    yield self.mapping.kernels[instruction.op], made
                self._keep(made)
            elif isinstance(instruction, Free):
                for node in self._in_storage.pop(self.mapping.storages[instruction.value], ()):
                    self.made.pop(node, None)

    def release(self, op: int) -> None:
        """Free the operands of an operation, retained or not, that no operation reads later in trace order."""
        problem = self.mapping.problem
        for value in problem.ops[op].reads:
            if problem.readers[value][-1] == op and not problem.values[value].resident:
                for node in self._in_storage.pop(self.mapping.storages[value], ()):
                    self.made.pop(node, None)

    def operands(self, kernel: ComputeKernel) -> list[fx.Node]:
        """Return the floating-point values that a kernel reads, each once, as their bases rather than views."""
        inside = set(kernel.calls)
        operands: dict[fx.Node, None] = {}
        stack = [node for call in reversed(kernel.calls) for node in reversed(call.all_input_nodes)]
        while stack:
            node = stack.pop()
            if node in self.made:
                if self.made[node].is_floating_point():
                    operands[node] = None
            elif node not in inside and node.op != "placeholder":
                stack += reversed(node.all_input_nodes)
        return list(operands)

    def value(self, node: fx.Node, instead: Instead | None = None) -> Any:
        """Return the value of a node.

        instead: tensors that replace made values in its computation.
        """
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

    def results(
        self, kernel: ComputeKernel, instead: Instead | None = None, *, is_rerun: bool
    ) -> dict[fx.Node, torch.Tensor]:
        """Return the results of a compute kernel, by node.

        instead: as in `value`.
        is_rerun: whether it has run before, so that buffers are not updated a second time.
        """
        changed = dict(instead or {})
        result: Any = None
        for call in kernel.calls:
            result = self._called(call, changed, kernel.updates if is_rerun else ())
            changed[call] = result
        last = kernel.calls[-1]
        if isinstance(result, torch.Tensor):
            return {last: result}
        return {node: result[node.args[1]] for node, _ in tensors_of(last)}  # pyright: ignore[reportArgumentType]

    def _called(self, call: fx.Node, instead: Instead | None, without: tuple[fx.Node, ...] = ()) -> Any:
        positional = [self._argument(argument, instead, without) for argument in call.args]
        named = {name: self._argument(argument, instead, without) for name, argument in call.kwargs.items()}
        return with_autocast(call)(*positional, **named)

    def _argument(self, argument: Any, instead: Instead | None, without: tuple[fx.Node, ...]) -> Any:
        # A recursive closure inside `_called` would keep operands alive until garbage collection.
        if isinstance(argument, fx.Node):
            return None if argument in without else self.value(argument, instead)
        if isinstance(argument, (list, tuple)):
            return [self._argument(part, instead, without) for part in argument]
        return argument

    def _run(self, op: int, instead: Instead) -> dict[fx.Node, torch.Tensor]:
        kernel, is_rerun = self.mapping.kernels[op], op in self._started
        self._started.add(op)
        if isinstance(kernel, TangentArrival):
            return {base: self._tangent(base) for base in (self.step.storages[s].base for s in kernel.makes)}
        if not isinstance(kernel, ComputeKernel):
            return {}
        if not kernel.random:
            return self.results(kernel, instead, is_rerun=is_rerun)
        if not is_rerun:
            self._states[op] = self._generator.state()
            return self.results(kernel, instead, is_rerun=False)
        with self._generator.drawing_from(self._states[op]):
            return self.results(kernel, instead, is_rerun=True)

    def _tangent(self, base: fx.Node) -> torch.Tensor:
        """Return an incoming gradient: 1 for a loss, random for another output."""
        fake = base.meta["val"]
        tangent = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=self.device)
        return tangent.fill_(1) if fake.numel() == 1 else tangent.normal_()

    def _keep(self, made: Mapping[fx.Node, torch.Tensor]) -> None:
        for node, tensor in made.items():
            storage = self.step.storage_of[node]
            if node in self.step.overwrites:  # removes the overwritten value
                for other in self._in_storage.pop(storage, ()):
                    self.made.pop(other, None)
            self.made[node] = tensor
            self._in_storage.setdefault(storage, set()).add(node)
