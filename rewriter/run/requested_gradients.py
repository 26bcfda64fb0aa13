"""Full gradients for `torch.autograd.grad` or `backward(inputs=)` at outputs from which others are computed.

At these outputs autograd's engine only sees the gradient from outside, and would return that: the part through other
outputs stays within the step. So the step receives the request before backward begins and provides the full gradients,
which replace those of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..capture.autograd_graph import gradient_edge
from ..capture.torch_internals import Engine


class GradientProvider(Protocol):
    """A step that can provide gradients of its outputs, as an attribute of its last node in autograd's graph."""

    requested: frozenset[int]
    provided: dict[int, torch.Tensor]
    first_token: torch.Tensor

    def is_inside(self, output: int) -> bool:
        """Return whether others are computed from an output. Raises TapeError if its gradient cannot be provided."""
        ...


@dataclass
class _Request:
    """The gradients requested from one step.

    places: the places among the engine's inputs, by output.
    """

    tape: GradientProvider
    places: dict[int, list[int]] = field(default_factory=dict)


def run_requested(engine: Engine, inputs: Sequence[Any], allow_unused: bool, accumulates: bool) -> Any:
    """Run a backward for chosen tensors (`inputs`), and return the engine's result with full gradients.

    accumulates: whether gradients go to `.grad`.
    Raises RuntimeError as the engine does for inputs that receive no gradient.
    """
    requests = _requests_of(inputs)
    if not requests:
        return engine(inputs, allow_unused)
    for request in requests:
        request.tape.requested = frozenset(request.places)
    try:
        # The engine would skip the step's backward if no gradient beyond it were requested.
        results = engine((*inputs, *(request.tape.first_token for request in requests)), True)
        if accumulates:
            return results
        gradients = list(results[: len(inputs)])
        for request in requests:
            for output, places in request.places.items():
                for place in places if output in request.tape.provided else ():
                    gradients[place] = request.tape.provided[output]
    finally:
        for request in requests:
            request.tape.requested = frozenset()
            request.tape.provided.clear()
    missing = next((place for place, gradient in enumerate(gradients) if gradient is None), None)
    if missing is not None and not allow_unused:
        raise RuntimeError(
            f"The differentiated Tensor at index {missing} appears to not have been used in the graph. Set "
            "allow_unused=True if this is the desired behavior."
        )
    return tuple(gradients)


def _requests_of(inputs: Iterable[Any]) -> list[_Request]:
    """Return the requests, one for each step, for inputs that are intermediate outputs of a step."""
    requests: dict[int, _Request] = {}
    for place, target in enumerate(inputs):
        node, output = gradient_edge(target)
        tape = getattr(node, "gradient_provider", None)
        if tape is not None and tape.is_inside(output):
            requests.setdefault(id(tape), _Request(tape)).places.setdefault(output, []).append(place)
    return list(requests.values())
