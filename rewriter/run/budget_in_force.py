"""The bytes that a budget comes to: a share is one of what the largest batch so far takes with everything kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from ..text.byte_sizes import Share, format_bytes, parse_bytes


@dataclass
class BudgetInForce:
    """A budget, and for a share the largest batch so far, of calls in training mode and of others.

    Calls in evaluation mode have a share of the largest batch in training, if there was one: a large batch in
    validation does not raise what training may take.
    """

    budget: int | str
    _largest: dict[bool, tuple[int, str]] = field(default_factory=dict)

    @property
    def is_share(self) -> bool:
        """Whether it depends on batches."""
        return isinstance(self._wanted, Share)

    @cached_property
    def _wanted(self) -> int | Share:
        return parse_bytes(self.budget)

    def see(self, whole_bytes: int, batch: str, training: bool) -> None:
        """Notes what a batch, told in words, takes with everything kept."""
        if whole_bytes > self._largest.get(training, (0, ""))[0]:
            self._largest[training] = whole_bytes, batch

    def bytes(self, training: bool) -> int:
        """The budget in bytes for calls in training mode, or for others; 0 for a share before any batch."""
        wanted = self._wanted
        return int(wanted.fraction * self._in_force(training)[0]) if isinstance(wanted, Share) else wanted

    def notes(self, training: bool) -> tuple[str, ...]:
        """Which batch set the bytes of a share."""
        if not self.is_share:
            return ()
        whole_bytes, batch = self._in_force(training)
        return (
            f"the budget of {self.budget} is {format_bytes(self.bytes(training))}: of the {format_bytes(whole_bytes)} "
            f"that the largest batch so far, {batch}, takes with everything kept",
        )

    def _in_force(self, training: bool) -> tuple[int, str]:
        return self._largest.get(True) or self._largest.get(training) or (0, "no batch yet")
