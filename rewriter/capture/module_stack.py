"""Which line of the user's code is running, for errors."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch


def user_line(frames: traceback.StackSummary) -> str:
    """The innermost line outside torch and lowtide, as text; of those that capture runs, "" where there is none."""
    torch_folder, package = Path(torch.__file__).parent, Path(__file__).parents[2]
    own_folders = (torch_folder, package / "rewriter", package / "passes")
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path == package / "rewriter" / "capture" / "capture.py":
            return ""  # further out is who called lowtide
        if path.is_file() and not any(path.is_relative_to(folder) for folder in own_folders):
            return f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return ""
