"""Writes the command line's output: only JSON on standard output, errors and notes on standard error."""

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

# Advice in Python that errors give, with the command line's options that replace it.
_AS_OPTIONS = {'outputs=["loss"]': "--outputs loss", "costs='roofline'": "--costs roofline"}


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Exit with status 2 and the message, without a traceback, if a request cannot be carried out.

    lowtide's own warnings become notes, each printed once.
    """
    printed: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.simplefilter("always", LowtideWarning)

        def note(message: Warning | str, category: type[Warning], *arguments: Any, **options: Any) -> None:
            if not (issubclass(category, LowtideWarning) or category.__module__.startswith(_PACKAGE)):
                show(message, category, *arguments, **options)
            elif str(message) not in printed:
                printed.add(str(message))
                typer.echo(printable_lines(f"note: {message}"), err=True)

        warnings.showwarning = note
        try:
            yield
        except (LowtideError, ValueError, OSError) as error:
            typer.echo(f"error: {_message(error)}", err=True)
            raise typer.Exit(ERROR_STATUS) from None


_PACKAGE = __name__.partition(".cli.")[0]


def print_json(value: Any) -> None:
    """Print one JSON value; infinities and NaN become null, as JSON has neither."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False)
    # JSON has escapes of its own
    typer.echo(text if text == printable_lines(text) else json.dumps(_finite(value), indent=2))


def print_line(text: str) -> None:
    """Print one line that may hold names from outside."""
    typer.echo(printable(text))


def check_target(path: Path | None) -> None:
    """Raise LowtideError if a file could not be written, before any long computation."""
    if path is None:
        return
    folder = path.expanduser().absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "is a folder" if path.is_dir() else f"cannot be written: {folder} is not a folder that can be written to"
        raise LowtideError(f"{path} {why}")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(name): _finite(value) for name, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _message(error: Exception) -> str:
    """Return the error's text without empty lines."""
    text = str(error)
    for python, option in _AS_OPTIONS.items():
        text = text.replace(python, option)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable_lines("\n".join(lines)) or type(error).__name__
