"""Shows a progress bar for planning, where standard error is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...solvers.problem.plain_text import printable

Progress = Callable[[float, str], None]  # receives the share done and a description

_PATIENCE_SECONDS = 1.0


@contextmanager
def shown_progress(title: str) -> Iterator[Progress | None]:
    """Yield a function to call with (share done, description); None where standard error is not a terminal.

    The bar appears after one second of work.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as parts
    from rich.console import Console

    # Both texts hold names, which must not act as formats, markup or control characters.
    texts = parts.TextColumn("{task.fields[title]}", markup=False), parts.TextColumn("{task.description}", markup=False)
    columns = (texts[0], parts.BarColumn(), parts.TimeElapsedColumn(), texts[1])
    bar = parts.Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=1.0, title=printable(title))
    started, shown = time.monotonic(), False

    def update(share: float, text: str) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > _PATIENCE_SECONDS:
            bar.start()
            shown = True
        bar.update(task, completed=share, description=printable(text)[:40])

    try:
        yield update
    finally:
        if shown:
            bar.stop()
