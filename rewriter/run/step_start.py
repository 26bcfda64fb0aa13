"""The start of a step: all that it needs to run again inside backward, for gradients it was not planned for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ...passes.sources import Source
from ..capture.boundary.outputs import Arrivals
from ..emit.program import Generator, Program

Served = tuple[Program, Mapping[Source, torch.Tensor]]


@dataclass
class Start:
    """The start of a step.

    tensors: the tensors from which it started, by source.
    versions: their versions, without those that forward updates.
    generator, state: the generator and its state, None for a step that draws no random numbers.
    plan_for: returns the program, with its constants, for other gradients.
    conditions: makes the context in which forward ran (autocast).
    """

    tensors: Mapping[Source, torch.Tensor]
    versions: Mapping[Source, int]
    generator: Generator
    state: bytes | None
    plan_for: Callable[[Arrivals], Served]
    conditions: Callable[[], AbstractContextManager[Any]]

    @classmethod
    def begin(
        cls,
        program: Program,
        tensors: Mapping[Source, torch.Tensor],
        device: torch.device,
        plan_for: Callable[[Arrivals], Served],
        conditions: Callable[[], AbstractContextManager[Any]],
    ) -> Start:
        """Return the start of a step that begins now."""
        generator = Generator(device)
        # The state is kept outside of torch's allocator, since it is not a tensor of the step.
        state = generator.state().numpy().tobytes() if program.random else None
        versions = {source: t._version for source, t in tensors.items() if source not in program.updated}
        return cls(tensors, versions, generator, state, plan_for, conditions)

    def drawing(self) -> AbstractContextManager[Any]:
        """Return a context in which the generator draws as it did from the start; its state is restored at the end."""
        if self.state is None:
            return nullcontext()
        return self.generator.drawing_from(torch.frombuffer(bytearray(self.state), dtype=torch.uint8))
