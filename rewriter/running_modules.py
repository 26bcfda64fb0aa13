"""Which module and which line of the user's code are running, for names and for errors."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


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


@contextmanager
def module_names(model: torch.nn.Module, running: list[str]) -> Iterator[None]:
    """Keeps `running` the stack of qualified names of the modules running."""
    names = {id(module): name for name, module in model.named_modules()}

    def enter(module: torch.nn.Module, _inputs: Any) -> None:
        if id(module) in names:
            running.append(names[id(module)])

    def leave(module: torch.nn.Module, _inputs: Any, _outputs: Any) -> None:
        if id(module) in names:
            running.pop()

    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
