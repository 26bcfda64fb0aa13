"""How the command line speaks: JSON alone on standard output, errors and notes in a line or two on standard error."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from ...solvers.problem.plain_text import printable, printable_lines
from ..errors import LowtideError, LowtideWarning

ERROR_STATUS = 2

# Advice that errors give in Python, as the command line's options.
_AS_OPTIONS = {'outputs=["loss"]': "--outputs loss", "costs='roofline'": "--costs roofline"}


@contextmanager
def speaking() -> Iterator[None]:
    """Ends with status 2 and the message, without a traceback, where something asked for cannot be done.

    lowtide's own warnings become notes, each told once.
    """
    told: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if not (issubclass(category, LowtideWarning) or category.__module__.startswith(_PACKAGE)):
                show(message, category, *rest, **more)
            elif str(message) not in told:
                told.add(str(message))
                typer.echo(printable_lines(f"note: {message}"), err=True)

        warnings.showwarning = note
        try:
            yield
        except (LowtideError, ValueError, OSError) as error:
            typer.echo(f"error: {_message(error)}", err=True)
            raise typer.Exit(ERROR_STATUS) from None


_PACKAGE = __name__.partition(".cli.")[0]


def print_json(told: Any) -> None:
    """Prints one JSON value; what is infinite or no number becomes null, as JSON has neither."""
    text = json.dumps(_finite(told), indent=2, ensure_ascii=False)
    # JSON has escapes of its own
    typer.echo(text if text == printable_lines(text) else json.dumps(_finite(told), indent=2))


def say(text: str) -> None:
    """Prints one line that may hold names from outside."""
    typer.echo(printable(text))


def check_target(path: Path | None) -> None:
    """Raises LowtideError where a file could not be written, before anything long is computed."""
    if path is None:
        return
    folder = path.expanduser().absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "is a folder" if path.is_dir() else f"cannot be written: {folder} is no folder that can be written to"
        raise LowtideError(f"{path} {why}")


def _finite(told: Any) -> Any:
    if isinstance(told, dict):
        return {str(name): _finite(value) for name, value in told.items()}
    if isinstance(told, (list, tuple)):
        return [_finite(value) for value in told]
    return None if isinstance(told, float) and not math.isfinite(told) else told


def _message(error: Exception) -> str:
    """The error's text on as many lines as it has, without empty ones."""
    text = str(error)
    for python, option in _AS_OPTIONS.items():
        text = text.replace(python, option)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable_lines("\n".join(lines)) or type(error).__name__
