"""Runs a program under autograd: one link per block, all values on a tape of their own for each call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .errors import LowtideWarning, TapeError
from .program import SEED, Binding, Key, Program
from .sources import Source


class Tape:
    """What one forward leaves for its backward."""

    def __init__(self, program: Program, tensors: Mapping[Source, torch.Tensor], device_type: str) -> None:
        self.program = program
        self.residents = {storage: tensors[source] for storage, source in program.residents.items()}
        self.values: dict[Key, Any] = {}
        self.versions: dict[Key, int] = {}
        self.device_type = device_type
        self.due = len(program.forward) - 1  # the block whose backward comes next
        self.given: frozenset[int] = frozenset()
        self.output_shapes: list[torch.Tensor] = []

    def run(self, binding: Binding) -> tuple[torch.Tensor, ...]:
        """Calls one function; what it gives goes onto the tape, what else it returns (outputs, gradients) comes
        back."""
        values = [
            self.residents[key]
            if key in self.residents
            else self.values.pop(key)
            if key in binding.drops
            else self.values[key]
            for key in binding.takes
        ]
        with _no_autocast(self.device_type):
            given, returned = self.program.functions[binding.function](values, binding.constants)
        self.values.update(zip(binding.gives, given, strict=True))
        return returned

    def seal(self) -> None:
        """Notes the versions of what backward reads and others can reach: parameters, buffers, inputs and outputs."""
        for key in self.program.watched:
            self.versions[key] = self._reach(key)._version

    def _reach(self, key: Key) -> torch.Tensor:
        return self.residents[key] if key in self.residents else self.values[key]  # pyright: ignore

    def check(self, binding: Binding) -> None:
        """Raises TapeError if something that this part of backward reads was changed in place since forward."""
        for key in binding.takes:
            expected = self.versions.get(key)
            if expected is None:
                continue
            now = self._reach(key)._version
            if now != expected:
                source = self.program.residents.get(key)  # pyright: ignore[reportArgumentType]
                what = f"{source.kind} {source.name}" if source else "an output of the module"
                raise TapeError(
                    f"{what} was changed in place between forward and backward (version {now}, expected {expected}), "
                    "and backward needs its former value; change it after backward, or change a copy"
                )

    def close(self) -> None:
        """Lets go of everything: a backward runs once."""
        self.due = -1
        self.values.clear()
        self.residents.clear()


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Generated code calls kernels with the dtypes that autocast chose at capture: it must not choose again."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


class _Link(torch.autograd.Function):
    """One block in autograd's graph, chained to the next by a token; the last returns the outputs."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, index: int, token: torch.Tensor, *entering: torch.Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.index = tape, index
        returned = tape.run(tape.program.forward[index])
        if index + 1 < len(tape.program.forward):
            return torch.empty(0)
        tape.seal()
        # The tape keeps the values, the caller gets aliases: an output on its own tape would be a cycle.
        outputs = tuple(output.detach() for output in returned)
        tape.output_shapes = [torch.empty_like(output, device="meta") for output in outputs]
        ctx.mark_non_differentiable(*(o for i, o in enumerate(outputs) if i not in tape.program.differentiable))
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        tape: Tape = ctx.tape
        _refuse_twice(tape, ctx.index)
        try:
            returned = _run_backward(tape, ctx.index, gradients)
        except BaseException:
            tape.close()
            raise
        return (None, None, None if ctx.index == 0 else torch.empty(0), *returned)


def _run_backward(tape: Tape, index: int, gradients: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """The gradients that are final after a block's backward."""
    last = len(tape.program.forward) - 1
    if index == last:
        _warn_of_autocast(tape.device_type)
        _receive(tape, gradients)
    binding = tape.program.backward[last - index]
    tape.check(binding)
    returned = tuple(
        gradient if _is_wanted(tape, source) else None
        for source, gradient in zip(binding.gradients, tape.run(binding), strict=True)
    )
    tape.due -= 1
    if tape.due < 0:
        tape.close()
    return returned


def _is_wanted(tape: Tape, source: Source) -> bool:
    """Whether a gradient depends on an incoming one that came, or (a custom function's) on none at all."""
    depends = tape.program.depends[source]
    return not depends or bool(depends & tape.given)


def _warn_of_autocast(device_type: str) -> None:
    if torch.is_autocast_enabled(device_type):
        warnings.warn(
            "backward runs under autocast, which would cast some of its operations again; a rewritten module's "
            "backward computes as outside of it, as torch recommends: leave the context before calling backward",
            LowtideWarning,
            stacklevel=2,
        )


def _refuse_twice(tape: Tape, index: int) -> None:
    if torch.is_grad_enabled():
        raise TapeError(
            "a rewritten module has no second derivative: create_graph=True asks for the gradient of a gradient; "
            "call the original module for that"
        )
    if tape.due != index:
        raise TapeError(
            "backward ran a second time through the same forward of a rewritten module, whose values are freed as "
            "backward goes; call forward again (retain_graph=True does not keep them)"
        )


def _receive(tape: Tape, gradients: Sequence[torch.Tensor | None]) -> None:
    """Puts the incoming gradients on the tape; one that does not come is zero, and what depends on it alone is None."""
    incoming = [gradients[output] for output in tape.program.differentiable]
    shapes = [tape.output_shapes[output] for output in tape.program.differentiable]
    tape.given = frozenset(i for i, gradient in enumerate(incoming) if gradient is not None)
    for storage, gradient, like in zip(tape.program.tangents, incoming, shapes, strict=True):
        if gradient is None:
            gradient = torch.zeros_like(like, device=tape.device_type)
        elif gradient.stride() != like.stride():
            # Kernels were planned for incoming gradients laid out like the outputs.
            _warn_of_layout(gradient, like)
            gradient = torch.empty_like(like, device=tape.device_type).copy_(gradient)
        # Kernels were planned for plain ones, which they need not copy first.
        tape.values[storage] = gradient.resolve_conj().resolve_neg()


def _warn_of_layout(gradient: torch.Tensor, like: torch.Tensor) -> None:
    significant = [dimension for dimension, size in enumerate(like.shape) if size != 1]
    if like.numel() and any(gradient.stride(d) != like.stride(d) for d in significant):
        warnings.warn(
            f"an incoming gradient of shape {tuple(like.shape)} has strides {gradient.stride()}, the output had "
            f"{like.stride()}: it is copied into the output's layout, so sums over it may differ from eager's in "
            "the last "
            "bit; compute the loss inside the rewritten module, or make the output contiguous there",
            LowtideWarning,
            stacklevel=2,
        )


def run_forward(program: Program, tensors: Mapping[Source, torch.Tensor], device_type: str) -> tuple[torch.Tensor, ...]:
    """Runs the forward of a step; the outputs it returns carry the backward.

    tensors: the parameters, buffers, inputs and constants of the step, by source. Each block's parameters enter
    autograd's graph at the block in whose backward their gradient is final, so that gradients are accumulated, and
    released, block by block.
    """
    tape = Tape(program, tensors, device_type)
    if program.draws:
        tape.values[SEED] = _next_number()
    # The first token requires a gradient so that every link is part of the graph, whatever is frozen.
    token: Any = torch.empty(0, requires_grad=True)
    last = len(program.forward) - 1
    for index in range(last + 1):
        entering = [tensors[source] for source in program.backward[last - index].gradients]
        token = _Link.apply(tape, index, token, *entering)
    if program.draws:
        torch.randint(2, (1,))  # so that the next step's codecs draw other numbers
    return token


def _next_number() -> int:
    """The number that the default generator would give next: forward itself draws what eager would draw."""
    state = torch.get_rng_state()
    number = int(torch.randint(2**62, (1,)))
    torch.set_rng_state(state)
    return number
