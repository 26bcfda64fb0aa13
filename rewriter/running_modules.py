"""Which line of the user's code is running, for errors."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch


def user_line(frames: traceback.StackSummary) -> str:
    """The innermost line outside torch and lowtide, as text; of those that capture runs, "" where there is none."""
    torch_folder, own_folder = Path(torch.__file__).parent, Path(__file__).parent.parent
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path == own_folder / "rewriter" / "capture.py":
            return ""  # further out is who called lowtide
        inside = path.is_relative_to(torch_folder) or path.parent in (own_folder / "rewriter", own_folder / "passes")
        if not inside and path.is_file():
            return f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return ""
