"""What stands, while a step is captured, for tensors from outside that are no inputs of the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx

from ...errors import CaptureError
from ..torch_internals import is_real, present_value


class StandIns:
    """Functional wrappers of such tensors, always the same for the same tensor, so that what is made of them can be
    changed in place, and they themselves where a module holds them.

    constant: makes the placeholder of a tensor, for which a tensor without data stands. blank: a context in which
    tensors are made that nobody records. made: tensors that forward made outside of what is recorded
    (`torch.from_numpy`), by id: changes of these end with it.
    """

    def __init__(
        self, constant: Callable[[torch.Tensor, torch.Tensor], fx.Node], blank: Callable[[], AbstractContextManager]
    ) -> None:
        self.constant = constant
        self.blank = blank
        self.made: dict[int, torch.Tensor] = {}
        self._known: dict[int, tuple[torch.Tensor, fx.Node, torch.Tensor]] = {}

    def of(self, value: torch.Tensor) -> torch.Tensor:
        """The wrapper that stands for a tensor."""
        if id(value) not in self._known:
            with self.blank():
                wrapper = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
            self._known[id(value)] = (value, self.constant(value, present_value(wrapper)), wrapper)
        return self._known[id(value)][2]

    def instead(self, value: Any) -> Any:
        """A value, in the place of tensors with data what stands for them, in lists, tuples and dicts too."""
        if isinstance(value, torch.Tensor):
            return self.of(value) if is_real(value) else value
        if type(value) in (tuple, list):
            return type(value)(self.instead(part) for part in value)
        return {key: self.instead(part) for key, part in value.items()} if type(value) is dict else value

    def lasting(self) -> Iterator[tuple[torch.Tensor, fx.Node, torch.Tensor]]:
        """Those of tensors that were there before forward: the tensor, its placeholder and its wrapper."""
        return ((value, node, wrapper) for key, (value, node, wrapper) in self._known.items() if key not in self.made)

    def refuse_changes(self, held: set[int], node_of: Callable[[torch.Tensor], fx.Node]) -> None:
        """Raises CaptureError if forward has changed a tensor that was there before and is not among `held`, by id.

        node_of: what made a tensor without data.
        """
        for value, node, wrapper in self.lasting():
            if id(value) not in held and node_of(present_value(wrapper)) is not node:
                raise CaptureError(
                    f"forward changes a tensor of shape {list(value.shape)} in place that no module holds; register it "
                    "as a buffer, or pass it as an argument"
                )
