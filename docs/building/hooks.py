"""Gives mkdocs what the pages show of the source: the package under its own name, and the command line's options."""

from __future__ import annotations

import importlib
import inspect
import shutil
import sys
import tempfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority

ROOT = Path(__file__).resolve().parents[2]
_FOLDERS = ("rewriter", "passes", "solvers", "kernels", "storage", "configs")
_COMMANDS = "<!-- commands -->"

# Removed when the process ends.
_FOLDER = tempfile.TemporaryDirectory(prefix="lowtide-docs-")


@event_priority(100)  # before mkdocstrings reads its paths
def on_config(config: Any) -> Any:
    """Point mkdocstrings at the package.

    The repository's root is the package, and its folder may have any name. So it is copied to a folder `lowtide`,
    without tests, benchmarks and virtual environments. Every folder gets an `__init__.py`: mkdocstrings passes over
    those without.
    """
    package = Path(_FOLDER.name) / "lowtide"
    shutil.rmtree(package, ignore_errors=True)
    for folder in _FOLDERS:
        shutil.copytree(ROOT / folder, package / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "__init__.py", package)
    for folder in package.rglob("*/"):
        (folder / "__init__.py").touch()
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_FOLDER.name]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands and their options in the place of the mark."""
    return markdown.replace(_COMMANDS, "\n\n".join(_commands())) if _COMMANDS in markdown else markdown


def _commands() -> Iterator[str]:
    """Yield the Markdown of each command: its help and a table of its parameters."""
    if _FOLDER.name not in sys.path:
        sys.path.insert(0, _FOLDER.name)
    typer = importlib.import_module("typer")
    group = typer.main.get_command(importlib.import_module("lowtide.rewriter.cli.main").app)
    for name, command in group.commands.items():
        rows = "\n".join(_row(parameter) for parameter in command.params)
        text = inspect.cleandoc(command.help or "")
        yield f"## lowtide {name}\n\n{text}\n\n| option | value | default | meaning |\n|---|---|---|---|\n{rows}"


def _row(parameter: Any) -> str:
    """Return the line of the table for one argument or option."""
    is_argument = not parameter.opts[0].startswith("-")
    names = parameter.metavar if is_argument else ", ".join(parameter.opts)
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    if default is None or default is False:
        default = "required" if parameter.required else ""
    value = "" if is_argument else _value(parameter)
    return f"| `{names}` | {value} | {getattr(default, 'value', default)} | {parameter.help} |"


def _value(parameter: Any) -> str:
    """Describe what an option takes: its choices, or the kind of its value."""
    kind = parameter.type_descriptor.annotation
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(choice.value for choice in kind)
    words = {bool: "", int: "number", float: "number", Path: "path"}
    return parameter.metavar or words.get(kind, "text")
