"""Runs a program under autograd: one link per block, all values on a tape of their own for each call."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from .asked_gradients import run_asked
from .begin_again import Start, check_start
from .changed_arguments import alone, refuse_changes
from .chosen_outputs import Arrivals
from .errors import LowtideWarning, TapeError
from .program import SEED, Binding, Key, Program
from .sources import Source
from .torch_internals import answer_backwards, left_alone_by_compile


class Tape:
    """What one forward leaves for its backward."""

    def __init__(
        self,
        program: Program,
        tensors: Mapping[Source, torch.Tensor],
        device_type: str,
        start: Start | None = None,
        expect: Callable[[Arrivals], None] | None = None,
    ) -> None:
        self.program = program
        self.start = start
        self.expect = expect
        self.residents = {storage: tensors[source] for storage, source in program.residents.items()}
        self.values: dict[Key, Any] = {}
        self.versions: dict[Key, int] = {}
        self.device_type = device_type
        self.due = len(program.forward) - 1  # the block whose backward comes next
        self.output_shapes: list[torch.Tensor] = []
        self.outputs: list[weakref.ref[torch.Tensor]] = []  # as the caller has them
        self.gradients: Mapping[Source, torch.Tensor] | None = None  # all of them, where the step began again
        # The first token requires a gradient so that every link is part of the graph, whatever is frozen.
        self.first_token = torch.empty(0, requires_grad=True)
        self.asked: frozenset[int] = frozenset()  # outputs whose whole gradients are to be handed out, and these
        self.handed: dict[int, torch.Tensor] = {}

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
            tensor = self._reach(key)
            if not tensor.is_inference():  # those count no versions
                self.versions[key] = tensor._version

    def _reach(self, key: Key) -> torch.Tensor:
        return self.residents[key] if key in self.residents else self.values[key]  # pyright: ignore

    def is_inside(self, output: int) -> bool:
        """Whether others are computed from an output. Raises TapeError for one declared to receive no gradient."""
        outputs = self.program.outputs
        if output in outputs.inside:
            _refuse_declined(self, [output])
        return output in outputs.inside

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
        self.start = None


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
        ctx.handing = tape
        # The tape keeps the values, the caller gets aliases: an output on its own tape would be a cycle.
        changed = entering[len(entering) - len(tape.program.outputs.changed) :]
        ctx.mark_dirty(*changed)
        outputs = (*(output.detach() for output in returned[: len(returned) - len(changed)]), *changed)
        tape.output_shapes = [torch.empty_like(output, device="meta") for output in outputs]
        able = {*tape.program.outputs.able, *tape.program.outputs.declined}
        ctx.mark_non_differentiable(*(o for i, o in enumerate(outputs) if i not in able))
        return outputs

    @staticmethod
    @left_alone_by_compile
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        tape: Tape = ctx.tape
        _refuse_twice(tape, ctx.index)
        try:
            returned = _run_backward(tape, ctx.index, gradients)
        except BaseException:
            tape.close()
            raise
        changed = (None,) * len(tape.program.outputs.changed) if ctx.index + 1 == len(tape.program.forward) else ()
        return (None, None, None if ctx.index == 0 else torch.empty(0), *returned, *changed)


def _run_backward(tape: Tape, index: int, gradients: Sequence[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """The gradients that are final after a block's backward."""
    last = len(tape.program.forward) - 1
    if index == last:
        _warn_of_autocast(tape.device_type)
        _receive(tape, gradients)
    binding = tape.program.backward[last - index]
    idle: tuple[torch.Tensor | None, ...] = (None,) * len(tape.program.idle) if index == 0 else ()
    if tape.gradients is not None:
        sources = (*binding.gradients, *(tape.program.idle if index == 0 else ()))
        returned = tuple(tape.gradients.get(source) for source in sources if source.kind != "output")
    else:
        tape.check(binding)
        made = dict(zip(binding.gradients, tape.run(binding), strict=True))
        for source in [source for source in made if source.kind == "output"]:
            _hand_out(tape, source, made.pop(source))
        returned = (*made.values(), *idle)
    tape.due -= 1
    if tape.due < 0:
        tape.close()
        tape.gradients = None
    return returned


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
    """Puts the incoming gradients on the tape; where others come than expected, the step begins again for them."""
    outputs = tape.program.outputs
    arrived = tuple(i for i, gradient in enumerate(gradients) if gradient is not None)
    _refuse_declined(tape, arrived)
    retained = _retained(tape) | tape.asked
    if set(arrived) != set(outputs.expected) or retained != frozenset(outputs.retained):
        incoming = {i: gradient for i, gradient in enumerate(gradients) if gradient is not None}
        tape.gradients = _begin_again(tape, incoming, retained)
        return
    for storage, output in zip(tape.program.tangents, outputs.expected, strict=True):
        gradient = gradients[output]
        assert gradient is not None
        tape.values[storage] = _laid_out(gradient, tape.output_shapes[output], tape.device_type)


def _laid_out(gradient: torch.Tensor, like: torch.Tensor, device_type: str) -> torch.Tensor:
    """A gradient laid out like its output, which is what kernels were planned for."""
    gradient = gradient.resolve_conj().resolve_neg()  # kernels were planned for plain ones, which they need not copy
    if gradient.stride() == like.stride():
        return gradient
    _warn_of_layout(gradient, like)
    return torch.empty_like(like, device=device_type).copy_(gradient)


def _refuse_declined(tape: Tape, arrived: Sequence[int]) -> None:
    outputs = tape.program.outputs
    for output in arrived:
        if output in outputs.declined:
            raise TapeError(
                f"a gradient arrives at the output {outputs.names[output]!r}, which was declared not to receive one "
                f"(differentiable={[outputs.names[i] for i in outputs.able]}); name it in differentiable= of rewrite, "
                "or detach it where it is used"
            )


def _retained(tape: Tape) -> frozenset[int]:
    """The outputs that others are computed from and whose gradient the caller retains: what of it comes through the
    others stays within the step, and has to be handed over. Raises TapeError for hooks, which would see a part."""
    retained = set()
    for output in tape.program.outputs.inside:
        tensor = tape.outputs[output]() if tape.outputs else None
        if tensor is None:
            continue
        if tensor._backward_hooks:
            raise TapeError(
                f"a hook waits for the gradient of the output {tape.program.outputs.names[output]!r}, and other "
                "outputs are computed from it: what comes through those stays within the rewritten step; add the hook "
                "inside of forward, or use retain_grad()"
            )
        if tensor.retains_grad:
            _refuse_declined(tape, [output])
            retained.add(output)
    return frozenset(retained)


def _hand_out(tape: Tape, source: Source, gradient: torch.Tensor) -> None:
    """Gives an output its whole gradient in the place of the part that autograd has seen."""
    tensor = tape.outputs[source.index]()
    is_asked = source.index in tape.asked
    if is_asked:
        tape.handed[source.index] = gradient
    if tensor is not None and tensor.retains_grad:
        tensor.grad = gradient.clone() if is_asked else gradient


def _begin_again(
    tape: Tape, incoming: Mapping[int, torch.Tensor], retained: frozenset[int]
) -> dict[Source, torch.Tensor]:
    """The gradients of a step that was planned for other incoming ones: it runs again, from its start, planned for
    these."""
    start, names = tape.start, tape.program.outputs.names
    arriving = Arrivals(frozenset(names[i] for i in incoming), frozenset(names[i] for i in retained))
    if start is None:
        if tape.expect is not None:
            tape.expect(arriving)
        changed = ", ".join(source.name for source in tape.program.outputs.changed)
        raise TapeError(
            f"gradients arrive at {arriving}, and this step was planned for gradients of "
            f"{tape.program.outputs.arrivals}"
            + (f"; it cannot begin again, as forward has changed argument {changed}" if changed else "")
            + "; call forward again, which is planned for that now"
        )
    shapes = {i: tape.output_shapes[i] for i in incoming}
    updated = tape.program.updated
    with start.conditions(), torch.enable_grad():
        program, constants = start.plan_for(arriving)
    check_start(start, tape.program, arriving)
    tape.values.clear()
    tape.residents.clear()
    # Buffers have been updated already: those that are handed over now are scratch.
    tensors = {source: t.detach().clone() if source in updated else t for source, t in start.tensors.items()}
    again = Tape(program, {**tensors, **constants}, tape.device_type)
    with start.drawing():
        if program.draws:
            again.values[SEED] = _next_number()
        for binding in program.forward:
            again.run(binding)
    number = {name: i for i, name in enumerate(program.outputs.names)}
    gradients = {number[names[i]]: (gradient, shapes[i]) for i, gradient in incoming.items()}
    for storage, output in zip(program.tangents, program.outputs.expected, strict=True):
        again.values[storage] = _laid_out(*gradients[output], tape.device_type)
    made: dict[Source, torch.Tensor] = {}
    for binding in program.backward:
        made.update(zip(binding.gradients, again.run(binding), strict=True))
    for source in [source for source in made if source.kind == "output"]:
        _hand_out(tape, replace(source, index=names.index(source.name)), made.pop(source))
    return made


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


def run_forward(
    program: Program,
    tensors: Mapping[Source, torch.Tensor],
    device_type: str,
    start: Start | None = None,
    expect: Callable[[Arrivals], None] | None = None,
) -> tuple[torch.Tensor, ...]:
    """Runs the forward of a step; the outputs it returns carry the backward.

    tensors: the parameters, buffers, inputs and constants of the step, by source. Each block's parameters enter
    autograd's graph at the block in whose backward their gradient is final, so that gradients are accumulated, and
    released, block by block. start: for a backward to which other gradients come than planned; expect: told of them
    where there is no start.
    Raises DecisionChanged where a decision of forward goes another way than the captured one.
    """
    changed = [tensors[source] for source in program.outputs.changed]
    refuse_changes(program.outputs, changed)
    tape = Tape(program, alone(program, tensors), device_type, start, expect)
    if program.draws:
        tape.values[SEED] = _next_number()
    token: Any = tape.first_token
    last = len(program.forward) - 1
    for index in range(last + 1):
        gradients = program.backward[last - index].gradients
        entering = [tensors[source] for source in gradients if source.kind != "output"]
        if index == 0:
            entering += [tensors[source] for source in program.idle]
        if index == last:
            entering += changed
        token = _Link.apply(tape, index, token, *entering)
    if program.outputs.inside:
        answer_backwards(run_asked)
        tape.outputs = [weakref.ref(output) for output in token]
    if program.draws:
        torch.randint(2, (1,))  # so that the next step's codecs draw other numbers
    return token


def _next_number() -> int:
    """The number that the default generator would give next: forward itself draws what eager would draw."""
    state = torch.get_rng_state()
    number = int(torch.randint(2**62, (1,)))
    torch.set_rng_state(state)
    return number
