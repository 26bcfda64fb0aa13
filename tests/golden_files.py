"""Compares a text with the file in `tests/golden` that holds what it is meant to be, or writes that file anew."""

from difflib import unified_diff
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("golden")


def compare(name: str, text: str, *, update: bool, folder: Path = FOLDER) -> None:
    """Fail with a diff unless a text equals the file `NAME.txt`, up to newlines at its end.

    name: may have slashes, for files in subfolders.
    update: whether to write the file instead.
    """
    path, text = folder / f"{name}.txt", text.rstrip("\n") + "\n"
    expected = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text == expected:
        return
    if update:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    lines = unified_diff(expected.splitlines(), text.splitlines(), f"golden/{name}.txt", "now", lineterm="")
    advice = "if the new text is right: pytest --update-golden, and read the diff before you commit it"
    pytest.fail("\n".join([*lines, advice]), pytrace=False)
