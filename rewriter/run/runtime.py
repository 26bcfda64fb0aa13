"""Run a program under autograd, link by link, with a separate tape of values for each call."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...passes.sources import Source
from ..capture.boundary.outputs import Arrivals
from ..capture.torch_internals import answer_backwards, any_waits_for_gradient, left_alone_by_compile
from ..emit.program import Link, Program
from ..errors import LowtideWarning, TapeError
from .changed_arguments import alone, refuse_changes
from .output_gradients import expected_layout, laid_out, provide_gradient, retained_outputs
from .requested_gradients import run_requested
from .restart import restart
from .step_start import Start
from .tape import Tape


class _Node(torch.autograd.Function):
    """A link as a node of autograd's graph, connected to the next by a token; the last returns the outputs."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, link: Link, token: torch.Tensor, *entering: torch.Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.link = tape, link
        returned: tuple[torch.Tensor, ...] = ()
        with tape.without_autocast():
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
        tape.output_shapes = [expected_layout(output.shape, output.stride(), output.dtype) for output in given]
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
    with tape.without_autocast():
        for part in link.backward:
            tape.check(part)
            own = tape.run(part)
            if part.has_outputs:
                for source, gradient in zip(part.gradients, own, strict=True):
                    if source.kind == "output":
                        provide_gradient(tape, source, gradient)
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
    """Put the incoming gradients on the tape; if they are not the expected ones, the step restarts for them."""
    outputs = tape.program.outputs
    arrived = tuple(i for i, gradient in enumerate(gradients) if gradient is not None)
    tape.refuse_declined(arrived)
    retained = retained_outputs(tape) | tape.requested
    if set(arrived) != set(outputs.expected) or retained != frozenset(outputs.retained):
        incoming = {i: gradient for i, gradient in enumerate(gradients) if gradient is not None}
        tape.gradients = restart(tape, incoming, retained)
        return
    for storage, output in zip(tape.program.tangents, outputs.expected, strict=True):
        gradient = gradients[output]
        assert gradient is not None
        tape.values[storage] = laid_out(gradient, tape.output_shapes[output], tape.device_type)


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
