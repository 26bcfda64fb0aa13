"""Placeholders, during capture, for tensors from outside that are not inputs of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx

from ...errors import CaptureError
from ..torch_internals import is_real, present_value


class TensorPlaceholders:
    """Functional wrappers of outside tensors, one for each tensor.

    Tensors computed from them can be changed in place, and so can the wrappers of tensors that a module holds.

    constant: makes the graph's placeholder of a real tensor, given a tensor without data in its place.
    blank: a context in which new tensors are not recorded.
    made: tensors that forward made unrecorded (`torch.from_numpy`), by id; changes of these end with forward.
    """

    def __init__(
        self, constant: Callable[[torch.Tensor, torch.Tensor], fx.Node], blank: Callable[[], AbstractContextManager]
    ) -> None:
        self.constant = constant
        self.blank = blank
        self.made: dict[int, torch.Tensor] = {}
        self._known: dict[int, tuple[torch.Tensor, fx.Node, torch.Tensor]] = {}

    def of(self, value: torch.Tensor) -> torch.Tensor:
        """Return the wrapper of a tensor."""
        if id(value) not in self._known:
            with self.blank():
                wrapper = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            self._known[id(value)] = (value, self.constant(value, present_value(wrapper)), wrapper)
        return self._known[id(value)][2]

    def instead(self, value: Any) -> Any:
        """Return a value with tensors with data replaced by their wrappers, also in lists, tuples and dicts."""
        if isinstance(value, torch.Tensor):
            return self.of(value) if is_real(value) else value
        if type(value) in (tuple, list):
            return type(value)(self.instead(part) for part in value)
        return {key: self.instead(part) for key, part in value.items()} if type(value) is dict else value

    def lasting(self) -> Iterator[tuple[torch.Tensor, fx.Node, torch.Tensor]]:
        """Return (tensor, placeholder, wrapper) for each tensor that existed before forward."""
        return ((value, node, wrapper) for key, (value, node, wrapper) in self._known.items() if key not in self.made)

    def refuse_changes(self, held: set[int], node_of: Callable[[torch.Tensor], fx.Node]) -> None:
        """Raise CaptureError if forward has changed a tensor that existed before and whose id is not in `held`.

        node_of: returns the node that made a tensor without data.
        """
        for value, node, wrapper in self.lasting():
            if id(value) not in held and node_of(present_value(wrapper)) is not node:
                raise CaptureError(
                    f"forward changes a tensor of shape {list(value.shape)} in place that no module holds; register it "
                    "as a buffer, or pass it as an argument"
                )
