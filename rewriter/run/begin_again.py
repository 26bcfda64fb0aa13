"""Runs a step from its start inside backward, where other gradients arrive than those it was planned for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ...passes.sources import Source
from ..capture.boundary.outputs import Arrivals
from ..emit.program import Generator, Program
from ..errors import TapeError

Served = tuple[Program, Mapping[Source, torch.Tensor]]


@dataclass
class Start:
    """What a step began from. tensors: by source. plan_for: the program, with its constants, for other gradients;
    conditions: those in which forward ran (autocast)."""

    tensors: Mapping[Source, torch.Tensor]
    versions: Mapping[Source, int]
    generator: Generator
    state: bytes | None
    plan_for: Callable[[Arrivals], Served]
    conditions: Callable[[], AbstractContextManager[Any]]

    @classmethod
    def here(
        cls,
        program: Program,
        tensors: Mapping[Source, torch.Tensor],
        device: torch.device,
        plan_for: Callable[[Arrivals], Served],
        conditions: Callable[[], AbstractContextManager[Any]],
    ) -> Start:
        """The start of a step that begins now."""
        generator = Generator(device)
        # Kept outside of torch's allocator, since a state is no tensor of the step; for a moment it is one.
        state = generator.state().numpy().tobytes() if program.random else None
        versions = {source: t._version for source, t in tensors.items() if source not in program.updated}
        return cls(tensors, versions, generator, state, plan_for, conditions)

    def drawing(self) -> AbstractContextManager[Any]:
        """A context in which the generator draws as it did from the start; afterwards it is where it was."""
        if self.state is None:
            return nullcontext()
        return self.generator.drawing_from(torch.frombuffer(bytearray(self.state), dtype=torch.uint8))


def check_start(start: Start, program: Program, arriving: Arrivals) -> None:
    """Raises TapeError if a step cannot begin again because something is no longer what it began from."""
    what_to_do = "call forward again, which is planned for that now"
    if program.rereads or any(source.kind == "input" for source in program.updated):
        raise TapeError(
            f"gradients arrive at {arriving}, for which this step was not planned, and it cannot begin again: forward "
            f"has changed what it reads ({', '.join(sorted(s.name for s in program.updated))}); {what_to_do}"
        )
    for source, version in start.versions.items():
        if start.tensors[source]._version != version:
            raise TapeError(
                f"gradients arrive at {arriving}, for which this step was not planned, and it cannot begin again: "
                f"{source.kind} {source.name} was changed in place since forward; {what_to_do}"
            )
