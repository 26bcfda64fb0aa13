"""The tape of a step: the values that one forward keeps for its backward, and what is recorded of its outputs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ...passes.sources import Source
from ..capture.boundary.outputs import Arrivals
from ..emit.program import SEED_KEY, Key, Link, Prepared, Program
from ..errors import TapeError
from .step_start import Start


class Tape:
    """The values that one forward keeps for its backward.

    values: by key, including parameters, buffers and inputs.
    versions: the versions of values that the user can change.
    start: the start of the step, from which it can restart with other gradients.
    expect: receives these gradients if there is no start.
    due: the number of the link whose backward comes next.
    output_shapes: tensors without data, laid out as the gradients of the outputs.
    outputs: the outputs as the caller has them.
    gradients: all gradients, if the step has restarted.
    requested: the outputs whose full gradients are requested.
    provided: these gradients, by output.
    first_token: requires a gradient, so that every link is part of autograd's graph, whatever is frozen.
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
        self.due = len(links) - 1
        self.output_shapes: list[torch.Tensor] = []
        self.outputs: list[weakref.ref[torch.Tensor]] = []
        self.gradients: Mapping[Source, torch.Tensor] | None = None
        self.first_token = torch.empty(0, requires_grad=True)
        self.requested: frozenset[int] = frozenset()
        self.provided: dict[int, torch.Tensor] = {}
        if program.draws:
            self.values[SEED_KEY] = _next_number()

    def run(self, part: Prepared) -> tuple[torch.Tensor, ...]:
        """Call one function, put the values it gives on the tape, and return its other results (outputs, gradients).

        It must be called in `without_autocast`.
        """
        held = self.values
        given, returned = part.function(
            [held.pop(key) if leaves else held[key] for key, leaves in part.fetches], part.constants
        )
        held.update(zip(part.gives, given, strict=True))
        return returned

    def without_autocast(self) -> AbstractContextManager[Any]:
        """Return a context without autocast: generated code has the dtypes that autocast chose at capture."""
        is_on = torch.is_autocast_enabled(self.device_type)
        return torch.autocast(self.device_type, enabled=False) if is_on else nullcontext()

    def seal(self) -> None:
        """Record the versions of values that backward reads and the user can change: parameters, inputs, outputs."""
        for key in self.program.watched:
            tensor = self.values[key]
            if not tensor.is_inference():  # those count no versions
                self.versions[key] = tensor._version

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

    def is_inside(self, output: int) -> bool:
        """Return whether others are computed from an output. Raises TapeError for one declared without gradient."""
        outputs = self.program.outputs
        if output in outputs.inside:
            self.refuse_declined([output])
        return output in outputs.inside

    def refuse_declined(self, arrived: Iterable[int]) -> None:
        """Raise TapeError for gradients of outputs that were declared not to receive any."""
        outputs = self.program.outputs
        for output in arrived:
            if output in outputs.declined:
                raise TapeError(
                    f"a gradient arrives at the output {outputs.names[output]!r}, which was declared not to receive "
                    f"one (differentiable={[outputs.names[i] for i in outputs.differentiable]}); name it in "
                    "differentiable= of rewrite, or detach it where it is used"
                )

    def close(self) -> None:
        """Release all values: a backward runs once."""
        self.due = -1
        self.values.clear()
        self.start = None


def _next_number() -> int:
    """Return the next number of the default generator without advancing it, so that forward draws like eager."""
    state = torch.get_rng_state()
    number = int(torch.randint(2**62, (1,)))
    torch.set_rng_state(state)
    return number
