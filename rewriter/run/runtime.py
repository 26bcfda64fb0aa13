"""Run a program under autograd, link by link, with a separate tape of values for each call."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from ...passes.sources import Source
from ..capture.boundary.outputs import Arrivals
from ..capture.torch_internals import answer_backwards, any_waits_for_gradient, left_alone_by_compile
from ..emit.program import SEED_KEY, Key, Link, Prepared, Program
from ..errors import LowtideWarning, TapeError
from .asked_gradients import run_requested
from .begin_again import Start, check_start
from .changed_arguments import alone, refuse_changes


class Tape:
    """The values that one forward keeps for its backward.

    values: by key, including parameters, buffers and inputs.
    versions: the versions of values that the user can change.
    """

    def __init__(
        self,
        program: Program,
        tensors: Mapping[Source, torch.Tensor],
        device_type: str,
        start: Start | None = None,
        expect: Callable[[Arrivals], None] | None = None,
        links: Sequence[Link] = (),
    ) -> None:
        self.program = program
        self.links = links
        self.start = start
        self.expect = expect
        self.values: dict[Key, Any] = {storage: tensors[source] for storage, source in program.residents.items()}
        self.versions: dict[Key, int] = {}
        self.device_type = device_type
        self.due = len(links) - 1  # the link whose backward comes next
        self.output_shapes: list[torch.Tensor] = []
        self.outputs: list[weakref.ref[torch.Tensor]] = []  # as the caller has them
        self.gradients: Mapping[Source, torch.Tensor] | None = None  # all of them, if the step began again
        # The first token requires a gradient so that every link is part of the graph, whatever is frozen.
        self.first_token = torch.empty(0, requires_grad=True)
        self.requested: frozenset[int] = frozenset()  # outputs whose full gradients are requested, and these
        self.provided: dict[int, torch.Tensor] = {}

    def run(self, part: Prepared) -> tuple[torch.Tensor, ...]:
        """Call one function, put the values it gives on the tape, and return its other results (outputs, gradients).

        Autocast must be off: generated code calls kernels with the dtypes that autocast chose at capture.
        """
        held = self.values
        given, returned = part.function(
            [held.pop(key) if leaves else held[key] for key, leaves in part.fetches], part.constants
        )
        held.update(zip(part.gives, given, strict=True))
        return returned

    def seal(self) -> None:
        """Record the versions of values that backward reads and the user can change: parameters, inputs, outputs."""
        for key in self.program.watched:
            tensor = self.values[key]
            if not tensor.is_inference():  # those count no versions
                self.versions[key] = tensor._version

    def is_inside(self, output: int) -> bool:
        """Return whether others are computed from an output. Raises TapeError for one declared without gradient."""
        outputs = self.program.outputs
        if output in outputs.inside:
            _refuse_declined(self, [output])
        return output in outputs.inside

    def check(self, part: Prepared) -> None:
        """Raise TapeError if something that this part of backward reads was changed in place since forward."""
        for key in part.watched:
            expected = self.versions.get(key)
            if expected is not None and (now := self.values[key]._version) != expected:
                source = self.program.residents.get(key)  # pyright: ignore[reportArgumentType]
                what = f"{source.kind} {source.name}" if source else "an output of the module"
                raise TapeError(
                    f"{what} was changed in place between forward and backward (version {now}, expected {expected}), "
                    "and backward needs its former value; change it after backward, or change a copy"
                )

    def close(self) -> None:
        """Release all values: a backward runs once."""
        self.due = -1
        self.values.clear()
        self.start = None


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast: generated code has the dtypes that autocast chose at capture."""
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()


class _Node(torch.autograd.Function):
    """A link as a node of autograd's graph, connected to the next by a token; the last returns the outputs."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, link: Link, token: torch.Tensor, *entering: torch.Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.link = tape, link
        returned: tuple[torch.Tensor, ...] = ()
        with _no_autocast(tape.device_type):
            for part in link.forward:
                returned = tape.run(part)
        if link is not tape.links[-1]:
            return torch.empty(0)
        tape.seal()
        ctx.gradient_provider = tape
        outputs = tape.program.outputs
        # The tape keeps the values and the caller gets aliases: an output on its own tape would be a cycle.
        changed = entering[len(entering) - len(outputs.changed) :] if outputs.changed else ()
        ctx.mark_dirty(*changed)
        given = (*(output.detach() for output in returned[: len(returned) - len(changed)]), *changed)
        tape.output_shapes = [_like(output.shape, output.stride(), output.dtype) for output in given]
        if len(outputs.differentiable) + len(outputs.declined) < len(given):
            differentiable = {*outputs.differentiable, *outputs.declined}
            ctx.mark_non_differentiable(*(o for i, o in enumerate(given) if i not in differentiable))
        return given

    @staticmethod
    @left_alone_by_compile
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        tape: Tape = ctx.tape
        link: Link = ctx.link
        _refuse_twice(tape, link.number)
        try:
            returned = _run_backward(tape, link, gradients)
        except BaseException:
            tape.close()
            raise
        changed = (None,) * len(tape.program.outputs.changed) if link.number + 1 == len(tape.links) else ()
        return (None, None, None if link.number == 0 else torch.empty(0), *returned, *changed)


@lru_cache(maxsize=1024)
def _like(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor without data that has the layout of the gradient of an output."""
    return torch.empty_like(torch.empty_strided(shape, stride, dtype=dtype, device="meta"))


def _run_backward(tape: Tape, link: Link, gradients: Sequence[torch.Tensor | None]) -> Sequence[torch.Tensor | None]:
    """Return the gradients that are final after a link's backward, in the order of `link.enter`."""
    if link.number + 1 == len(tape.links):
        _warn_of_autocast(tape.device_type)
        _receive(tape, gradients)
    if tape.gradients is not None:
        returned: Sequence[torch.Tensor | None] = [tape.gradients.get(source) for source in link.enter]
    else:
        returned = _gradients(tape, link)
    tape.due -= 1
    if tape.due < 0:
        tape.close()
        tape.gradients = None
    return returned


def _gradients(tape: Tape, link: Link) -> list[torch.Tensor | None]:
    made: list[torch.Tensor | None] = []
    with _no_autocast(tape.device_type):
        for part in link.backward:
            tape.check(part)
            own = tape.run(part)
            if part.has_outputs:
                for source, gradient in zip(part.gradients, own, strict=True):
                    if source.kind == "output":
                        _provide_gradient(tape, source, gradient)
                    else:
                        made.append(gradient)
            else:
                made += own
    return made + [None] * (len(link.enter) - len(made))  # sources that no expected gradient reaches


def _warn_of_autocast(device_type: str) -> None:
    if torch.is_autocast_enabled(device_type):
        warnings.warn(
            "backward runs under autocast, which would cast some of its operations again; a rewritten module's "
            "backward ignores it, as torch recommends: leave the context before calling backward",
            LowtideWarning,
            stacklevel=2,
        )


def _refuse_twice(tape: Tape, number: int) -> None:
    if torch.is_grad_enabled():
        raise TapeError(
            "a rewritten module has no second derivative: create_graph=True asks for the gradient of a gradient; "
            "call the original module for that"
        )
    if tape.due != number:
        raise TapeError(
            "backward ran a second time through the same forward of a rewritten module, whose values are freed during "
            "backward; call forward again (retain_graph=True does not keep them)"
        )


def _receive(tape: Tape, gradients: Sequence[torch.Tensor | None]) -> None:
    """Put the incoming gradients on the tape; if they are not the expected ones, the step begins again for them."""
    outputs = tape.program.outputs
    arrived = tuple(i for i, gradient in enumerate(gradients) if gradient is not None)
    _refuse_declined(tape, arrived)
    retained = _retained(tape) | tape.requested
    if set(arrived) != set(outputs.expected) or retained != frozenset(outputs.retained):
        incoming = {i: gradient for i, gradient in enumerate(gradients) if gradient is not None}
        tape.gradients = _begin_again(tape, incoming, retained)
        return
    for storage, output in zip(tape.program.tangents, outputs.expected, strict=True):
        gradient = gradients[output]
        assert gradient is not None
        tape.values[storage] = _laid_out(gradient, tape.output_shapes[output], tape.device_type)


def _laid_out(gradient: torch.Tensor, like: torch.Tensor, device_type: str) -> torch.Tensor:
    """Return a gradient with the layout of its output, for which kernels were planned."""
    gradient = gradient.resolve_conj().resolve_neg()  # kernels were planned for gradients without lazy flags
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
                f"(differentiable={[outputs.names[i] for i in outputs.differentiable]}); name it in differentiable= of "
                "rewrite, or detach it where it is used"
            )


def _retained(tape: Tape) -> frozenset[int]:
    """Return the outputs from which others are computed and whose gradient the caller retains.

    The part of the gradient through other outputs stays within the step, which must provide it.
    Raises TapeError for hooks, which would only see the other part.
    """
    retained = set()
    for output in tape.program.outputs.inside:
        tensor = tape.outputs[output]() if tape.outputs else None
        if tensor is None:
            continue
        if tensor._backward_hooks:
            raise TapeError(
                f"a hook waits for the gradient of the output {tape.program.outputs.names[output]!r}, and other "
                "outputs are computed from it: its gradient through those stays within the rewritten step; add the "
                "hook inside of forward, or use retain_grad()"
            )
        if tensor.retains_grad:
            _refuse_declined(tape, [output])
            retained.add(output)
    return frozenset(retained)


def _provide_gradient(tape: Tape, source: Source, gradient: torch.Tensor) -> None:
    """Give an output its full gradient instead of the part that autograd has seen."""
    tensor = tape.outputs[source.index]()
    is_asked = source.index in tape.requested
    if is_asked:
        tape.provided[source.index] = gradient
    if tensor is not None and tensor.retains_grad:
        tensor.grad = gradient.clone() if is_asked else gradient


def _begin_again(
    tape: Tape, incoming: Mapping[int, torch.Tensor], retained: frozenset[int]
) -> dict[Source, torch.Tensor]:
    """Plan a step for these incoming gradients, run it again from its start, and return its gradients."""
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
    # Buffers have been updated already, so the second run updates copies.
    tensors = {source: t.detach().clone() if source in updated else t for source, t in start.tensors.items()}
    second_tape = Tape(program, {**tensors, **constants}, tape.device_type)
    with start.drawing(), _no_autocast(tape.device_type):
        if program.draws:
            second_tape.values[SEED_KEY] = _next_number()
        for part in program.prepared_forward:
            second_tape.run(part)
    number = {name: i for i, name in enumerate(program.outputs.names)}
    gradients = {number[names[i]]: (gradient, shapes[i]) for i, gradient in incoming.items()}
    for storage, output in zip(program.tangents, program.outputs.expected, strict=True):
        second_tape.values[storage] = _laid_out(*gradients[output], tape.device_type)
    made: dict[Source, torch.Tensor] = {}
    with _no_autocast(tape.device_type):
        for part in program.prepared_backward:
            made.update(zip(part.gradients, second_tape.run(part), strict=True))
    for source in [source for source in made if source.kind == "output"]:
        _provide_gradient(tape, replace(source, index=names.index(source.name)), made.pop(source))
    return made


def _warn_of_layout(gradient: torch.Tensor, like: torch.Tensor) -> None:
    significant = [dimension for dimension, size in enumerate(like.shape) if size != 1]
    if like.numel() and any(gradient.stride(d) != like.stride(d) for d in significant):
        warnings.warn(
            f"an incoming gradient of shape {tuple(like.shape)} has strides {gradient.stride()}, the output had "
            f"{like.stride()}: it is copied into the output's layout, so sums over it may differ from eager's in the "
            "last bit; compute the loss inside the rewritten module, or make the output contiguous there",
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
    """Run the forward of a step; backward runs through the outputs that it returns.

    tensors: the parameters, buffers, inputs and constants of the step, by source. Each parameter enters autograd's
        graph at the link in whose backward its gradient is final, so that gradients are accumulated, and released,
        link by link.
    start: the start of the step, for a backward with other gradients than planned.
    expect: receives these gradients if there is no start.
    Raises DecisionChanged if a decision of forward differs from the captured one.
    """
    changed = [tensors[source] for source in program.outputs.changed]
    refuse_changes(program.outputs, changed)
    # A hook on accumulated gradients may release each of them immediately.
    links = program.single_links if any_waits_for_gradient(tensors.values()) else program.links
    tape = Tape(program, alone(program, tensors), device_type, start, expect, links)
    if program.draws:
        tape.values[SEED_KEY] = _next_number()
    token: Any = tape.first_token
    for link in links:
        entering = [tensors[source] for source in link.enter]
        if link is links[-1]:
            entering += changed
        token = _Node.apply(tape, link, token, *entering)
    if program.outputs.inside:
        answer_backwards(run_requested)
        tape.outputs = [weakref.ref(output) for output in token]
    if program.draws:
        torch.randint(2, (1,))  # so that the codecs of the next step draw different numbers
    return token


def _next_number() -> int:
    """Return the next number of the default generator without advancing it, so that forward draws like eager."""
    state = torch.get_rng_state()
    number = int(torch.randint(2**62, (1,)))
    torch.set_rng_state(state)
    return number
