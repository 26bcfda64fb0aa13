"""Text from outside (names, paths, what files hold) made safe to print: it cannot move a cursor or reorder a line."""

from __future__ import annotations

from ..solvers.plain_text import printable, printable_lines

__all__ = ["printable", "printable_lines", "shortened"]


def shortened(text: str, most_letters: int = 500) -> str:
    """A text made printable, and cut where it is longer than anyone reads."""
    shown = printable(text[: most_letters + 1])
    return shown if len(shown) <= most_letters else f"{shown[:most_letters]} …"
