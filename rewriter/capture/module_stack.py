"""Find the line of the user's code that is running, for error messages and comments in generated code."""

from __future__ import annotations

import sys
import traceback
from functools import cache
from pathlib import Path

import torch

_TORCH, _PACKAGE = Path(torch.__file__).parent, Path(__file__).parents[2]
_OWN_FOLDERS = (_TORCH, _PACKAGE / "rewriter", _PACKAGE / "passes", _PACKAGE / "kernels")
_CAPTURE = str(_PACKAGE / "rewriter" / "capture" / "capture.py")  # the frames outside of it called lowtide


def user_line(frames: traceback.StackSummary) -> str:
    """Return the innermost line outside torch and lowtide that capture runs, as text; "" if there is none."""
    for frame in reversed(frames):
        if frame.filename == _CAPTURE:
            return ""
        if _is_users(frame.filename):
            return f" ({frame.filename}:{frame.lineno}: {frame.line})"
    return ""


def running_line() -> str:
    """Return the file and number of that line, `model.py:12`, in microseconds since no file is read."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _CAPTURE:
        if _is_users(frame.f_code.co_filename):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


@cache
def _is_users(filename: str) -> bool:
    path = Path(filename)
    try:
        is_file = path.is_file()
    except OSError:  # generated code may have any text for a file name, also one that is too long for a file
        return False
    return is_file and not any(path.is_relative_to(folder) for folder in _OWN_FOLDERS)
