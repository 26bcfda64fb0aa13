"""Compute the bytes of a budget: a share refers to the bytes of the largest batch so far with everything kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..text.byte_sizes import Share, format_bytes, parse_bytes


@dataclass
class BudgetInForce:
    """A budget, and for a share the largest batch so far, in training mode and in evaluation mode.

    Calls in evaluation mode have a share of the largest batch in training, if there was one: a large batch in
    validation does not raise the budget of training.
    """

    budget: int | str
    _largest: dict[bool, tuple[int, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._parsed_budget = parse_bytes(self.budget)  # raises BudgetError

    @property
    def is_share(self) -> bool:
        """Return whether it depends on batches."""
        return isinstance(self._parsed_budget, Share)

    def see(self, whole_bytes: int, batch: str, training: bool) -> None:
        """Record the bytes of a batch, described in words, with everything kept."""
        if whole_bytes > self._largest.get(training, (0, ""))[0]:
            self._largest[training] = whole_bytes, batch

    def bytes(self, training: bool) -> int:
        """Return the budget in bytes for calls in training mode, or for others; 0 for a share before any batch."""
        budget = self._parsed_budget
        return int(budget.fraction * self._in_force(training)[0]) if isinstance(budget, Share) else budget

    def notes(self, training: bool) -> tuple[str, ...]:
        """Return a note on the batch that determined the bytes of a share."""
        if not self.is_share:
            return ()
        whole_bytes, batch = self._in_force(training)
        return (
            f"the budget of {self.budget} is {format_bytes(self.bytes(training))}: of the {format_bytes(whole_bytes)} "
            f"that the largest batch so far, {batch}, takes with everything kept",
        )

    def _in_force(self, training: bool) -> tuple[int, str]:
        return self._largest.get(True) or self._largest.get(training) or (0, "no batch yet")
