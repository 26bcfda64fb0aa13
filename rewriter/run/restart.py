"""Restart a step inside backward, if gradients arrive for which it was not planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

import torch

from ...passes.sources import Source
from ..capture.boundary.outputs import Arrivals
from ..emit.program import Program
from ..errors import TapeError
from .output_gradients import laid_out, provide_gradient
from .step_start import Start
from .tape import Tape

_WHAT_TO_DO = "call forward again, which is planned for that now"


def restart(tape: Tape, incoming: Mapping[int, torch.Tensor], retained: frozenset[int]) -> dict[Source, torch.Tensor]:
    """Plan a step for these incoming gradients, run it again from its start, and return its gradients.

    incoming: the gradients by output.
    retained: the outputs whose full gradients the step must provide.
    Raises TapeError if the step has no start, or if a tensor of its start has changed.
    """
    start, names = tape.start, tape.program.outputs.names
    arriving = Arrivals(frozenset(names[i] for i in incoming), frozenset(names[i] for i in retained))
    if start is None:
        _refuse_without_start(tape, arriving)
    shapes = {i: tape.output_shapes[i] for i in incoming}
    updated = tape.program.updated
    with start.conditions(), torch.enable_grad():
        program, constants = start.plan_for(arriving)
    _check_start(start, tape.program, arriving)
    tape.values.clear()
    # Buffers have been updated already, so the second run updates copies.
    tensors = {source: t.detach().clone() if source in updated else t for source, t in start.tensors.items()}
    with start.drawing():
        second_tape = Tape(program, {**tensors, **constants}, tape.device_type)
        with second_tape.without_autocast():
            for part in program.prepared_forward:
                second_tape.run(part)
    number = {name: i for i, name in enumerate(program.outputs.names)}
    gradients = {number[names[i]]: (gradient, shapes[i]) for i, gradient in incoming.items()}
    for storage, output in zip(program.tangents, program.outputs.expected, strict=True):
        second_tape.values[storage] = laid_out(*gradients[output], tape.device_type)
    made: dict[Source, torch.Tensor] = {}
    with second_tape.without_autocast():
        for part in program.prepared_backward:
            made.update(zip(part.gradients, second_tape.run(part), strict=True))
    for source in [source for source in made if source.kind == "output"]:
        provide_gradient(tape, replace(source, index=names.index(source.name)), made.pop(source))
    return made


def _refuse_without_start(tape: Tape, arriving: Arrivals) -> NoReturn:
    if tape.expect is not None:
        tape.expect(arriving)
    outputs = tape.program.outputs
    changed = ", ".join(source.name for source in outputs.changed)
    why = f"; it cannot begin again, as forward has changed argument {changed}" if changed else ""
    raise TapeError(
        f"gradients arrive at {arriving}, and this step was planned for gradients of {outputs.arrivals}{why}; "
        f"{_WHAT_TO_DO}"
    )


def _check_start(start: Start, program: Program, arriving: Arrivals) -> None:
    """Raise TapeError if a step cannot restart because a tensor of its start has changed."""
    cannot = f"gradients arrive at {arriving}, for which this step was not planned, and it cannot begin again"
    if program.rereads or any(source.kind == "input" for source in program.updated):
        changed = ", ".join(sorted(source.name for source in program.updated))
        raise TapeError(f"{cannot}: forward has changed what it reads ({changed}); {_WHAT_TO_DO}")
    for source, version in start.versions.items():
        if start.tensors[source]._version != version:
            raise TapeError(f"{cannot}: {source.kind} {source.name} was changed in place since forward; {_WHAT_TO_DO}")
