"""A progress bar for planning, shown only where a person waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...solvers.problem.plain_text import printable

_PATIENCE_SECONDS = 1.0


@contextmanager
def shown_progress(title: str) -> Iterator[Callable[[float, str], None] | None]:
    """Yields what to call with (share done, what is being done); None where standard error is no terminal.

    The bar appears when the work has taken a second.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    # Names are in both texts: neither a format nor markup, nor control characters.
    told = TextColumn("{task.fields[title]}", markup=False), TextColumn("{task.description}", markup=False)
    columns = (told[0], BarColumn(), TimeElapsedColumn(), told[1])
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=1.0, title=printable(title))
    started, shown = time.monotonic(), False

    def tell(share: float, text: str) -> None:
        nonlocal shown
        if not shown and time.monotonic() - started > _PATIENCE_SECONDS:
            bar.start()
            shown = True
        bar.update(task, completed=share, description=printable(text)[:40])

    try:
        yield tell
    finally:
        if shown:
            bar.stop()
