"""Calls in evaluation mode with gradients: they are planned too, but run the original if they cannot be planned."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field

from ..capture.call.key import CallKey
from ..errors import CaptureError, LowtideWarning


@dataclass
class Evaluation:
    """The kinds of calls in evaluation mode that run the original, since planning them failed."""

    _given_up: set[Hashable] = field(default_factory=set)
    _has_warned: bool = False

    def has_given_up(self, key: CallKey) -> bool:
        """Return whether a kind of call runs the original."""
        return bool(self._given_up) and (key in self._given_up or _without_shapes(key) in self._given_up)

    def give_up(self, key: CallKey | None, error: Exception) -> None:
        """Record that a kind of call cannot be planned, and warn the first time.

        key: the kind of call, None if it could not be described.
        After a CaptureError the call is not tried again with other shapes.
        """
        if key is not None:
            self._given_up.add(_without_shapes(key) if isinstance(error, CaptureError) else key)
        if self._has_warned:
            return
        self._has_warned = True
        warnings.warn(
            "a call in evaluation mode with grad mode on could not be planned, so it runs the original forward without "
            "a budget; in validation call the module under torch.no_grad(), which needs no plan and keeps nothing "
            f"for backward. The cause: {type(error).__name__}: {error}",
            LowtideWarning,
            stacklevel=4,
        )


def _without_shapes(key: CallKey) -> Hashable:
    return key.arguments, key.module
