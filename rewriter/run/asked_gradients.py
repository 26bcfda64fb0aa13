"""Gradients that `torch.autograd.grad` or `backward(inputs=)` asks for at outputs from which others are computed.

At such an output autograd's engine sees what arrives from outside, and would give that alone: what comes through the
other outputs stays within the step. So the step is told what is asked before backward begins, hands out the whole
gradients, and they take the place of what the engine has found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..capture.torch_internals import Engine, gradient_edge


class Handing(Protocol):
    """A step that can hand out gradients of its outputs, on the node that autograd's graph has for all of them."""

    asked: frozenset[int]
    handed: dict[int, torch.Tensor]
    first_token: torch.Tensor

    def is_inside(self, output: int) -> bool:
        """Whether others are computed from an output. Raises TapeError where its gradient cannot be handed out."""
        ...


@dataclass
class _Asked:
    """What is asked of one step. places: by output, where among the engine's inputs it stands."""

    tape: Handing
    places: dict[int, list[int]] = field(default_factory=dict)


def run_asked(engine: Engine, inputs: Sequence[Any], allow_unused: bool, accumulates: bool) -> Any:
    """Runs a backward for chosen tensors (`inputs`), and gives what the engine does, with whole gradients.

    accumulates: they go to `.grad`. Raises RuntimeError as the engine does for inputs that receive no gradient.
    """
    asked = _asked_of(inputs)
    if not asked:
        return engine(inputs, allow_unused)
    for one in asked:
        one.tape.asked = frozenset(one.places)
    try:
        # The engine would pass over the step's backward where nothing beyond it is asked for.
        found = engine((*inputs, *(one.tape.first_token for one in asked)), True)
        if accumulates:
            return found
        gradients = list(found[: len(inputs)])
        for one in asked:
            for output, places in one.places.items():
                for place in places if output in one.tape.handed else ():
                    gradients[place] = one.tape.handed[output]
    finally:
        for one in asked:
            one.tape.asked = frozenset()
            one.tape.handed.clear()
    missing = next((place for place, gradient in enumerate(gradients) if gradient is None), None)
    if missing is not None and not allow_unused:
        raise RuntimeError(
            f"The differentiated Tensor at index {missing} appears to not have been used in the graph. Set "
            "allow_unused=True if this is the desired behavior."
        )
    return tuple(gradients)


def _asked_of(inputs: Iterable[Any]) -> list[_Asked]:
    """What of the inputs lies inside of a step, by step."""
    found: dict[int, _Asked] = {}
    for place, one in enumerate(inputs):
        node, output = gradient_edge(one)
        tape = getattr(node, "handing", None)
        if tape is not None and tape.is_inside(output):
            found.setdefault(id(tape), _Asked(tape)).places.setdefault(output, []).append(place)
    return list(found.values())
