"""Checks while a step runs that decisions are those of its capture, and undoes the step where they are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .backend.library import define


class DecisionChanged(Exception):
    """A decision of forward differs from the captured one.

    undo: copies of the values from before the step.
    """

    def __init__(self, undo: Sequence[torch.Tensor]) -> None:
        super().__init__("a decision of forward differs from the one that was captured")
        self.undo = tuple(undo)


def require(values: Sequence[torch.Tensor], expected: Sequence[bool], undo: Sequence[torch.Tensor]) -> None:
    """Raise `DecisionChanged` with `undo` unless truth values are the expected ones."""
    # A device is waited for at each read, so all values are read at once there.
    one_at_a_time = len(values) == 1 or values[0].device.type == "cpu"
    seen = [bool(value) for value in values] if one_at_a_time else torch.stack(list(values)).tolist()
    if seen != list(expected):
        raise DecisionChanged(undo)


def state_bytes(device: torch.device) -> int:
    """Return the bytes of the state of a device's default generator, on the host."""
    return 16 if device.type == "cuda" else 5056


def _state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _state_shape(device: torch.device) -> torch.Tensor:
    return torch.empty(state_bytes(device), dtype=torch.uint8, device="cpu")


check = define(
    "check(Tensor[] values, bool[] expected, Tensor[] undo) -> ()", require, lambda values, expected, undo: None
)
"""Raises `DecisionChanged` with `undo` unless truth values are the expected ones."""

generator_state = define("generator_state(Device device) -> Tensor", _state, _state_shape)
"""A copy of the state of a device's default generator, uint8."""
