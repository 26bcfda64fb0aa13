"""Find the line of the user's code that is running, for error messages."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch


def user_line(frames: traceback.StackSummary) -> str:
    """Return the innermost line outside torch and lowtide that capture runs, as text; "" if there is none."""
    torch_folder, package = Path(torch.__file__).parent, Path(__file__).parents[2]
    own_folders = (torch_folder, package / "rewriter", package / "passes")
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path == package / "rewriter" / "capture" / "capture.py":
            return ""  # the outer frames called lowtide
        if path.is_file() and not any(path.is_relative_to(folder) for folder in own_folders):
            return f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return ""
