"""Makes sure, while a step runs, that decisions go as they went when it was captured; undoes the step where not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .backend.library import define


class DecisionChanged(Exception):
    """A decision of forward that goes another way than the captured one. undo: copies of what was there before."""

    def __init__(self, undo: Sequence[torch.Tensor]) -> None:
        super().__init__("a decision goes another way than it did when the step was captured")
        self.undo = tuple(undo)


def require(values: Sequence[torch.Tensor], expected: Sequence[bool], undo: Sequence[torch.Tensor]) -> None:
    """Raises `DecisionChanged` with `undo` unless truth values are what is expected of them."""
    # On a device that is waited for at each read, all are read at once.
    apart = len(values) == 1 or values[0].device.type == "cpu"
    seen = [bool(value) for value in values] if apart else torch.stack(list(values)).tolist()
    if seen != list(expected):
        raise DecisionChanged(undo)


def state_bytes(device: torch.device) -> int:
    """What the state of a device's default generator takes, on the host."""
    return 16 if device.type == "cuda" else 5056


def _state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _state_shape(device: torch.device) -> torch.Tensor:
    return torch.empty(state_bytes(device), dtype=torch.uint8, device="cpu")


check = define(
    "check(Tensor[] values, bool[] expected, Tensor[] undo) -> ()", require, lambda values, expected, undo: None
)
"""Raises `DecisionChanged` with `undo` unless truth values are what is expected of them."""

generator_state = define("generator_state(Device device) -> Tensor", _state, _state_shape)
"""A copy of the state of a device's default generator, uint8."""
