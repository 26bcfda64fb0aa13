"""Text from outside (names, paths, what files hold) made safe to print: it cannot move a cursor or reorder a line."""

from __future__ import annotations

from ..solvers.plain_text import printable, printable_lines

__all__ = ["printable", "printable_lines"]
