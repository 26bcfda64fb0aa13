"""Errors that planning raises."""

from __future__ import annotations

from .plain_text import printable_lines


class LowtideError(Exception):
    """Every error that lowtide raises on purpose. Its text may hold names from outside, and is safe to print."""

    def __str__(self) -> str:
        return printable_lines(super().__str__())


class ScheduleError(LowtideError):
    """An instruction cannot be executed: a value that it reads is not alive, or it runs out of order."""


class InfeasibleBudget(LowtideError):
    """No schedule that lowtide knows fits the budget.

    smallest_bytes: the lowest peak found.
    budget_bytes: the requested budget.
    hints: changes that would lower the peak.
    """

    def __init__(self, message: str, smallest_bytes: int, budget_bytes: int, hints: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.smallest_bytes = smallest_bytes
        self.budget_bytes = budget_bytes
        self.hints = hints

    def __reduce__(self):
        return (type(self), (str(self), self.smallest_bytes, self.budget_bytes, self.hints))
