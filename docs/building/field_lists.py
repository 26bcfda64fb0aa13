"""Makes Markdown lists of the fields in docstrings, which name one field per line."""

from __future__ import annotations

import re
from typing import Any

import griffe

_FIELD = re.compile(r"(?P<names>[a-z_]\w*(?:, [a-z_]\w*)*): (?P<text>.*)")


class FieldLists(griffe.Extension):
    """Rewrites each docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = with_lists(obj.docstring.value)


def with_lists(text: str) -> str:
    """Return a docstring in which lines such as `budget: bytes` are items of a list.

    Lines that are indented belong to the item before them.
    """
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        field = _FIELD.fullmatch(line)
        if field is not None:
            if not in_list and lines and lines[-1]:
                lines.append("")
            names = ", ".join(f"`{name}`" for name in field["names"].split(", "))
            lines.append(f"- {names}: {field['text']}")
            in_list = True
        else:
            if in_list and line and not line.startswith(" "):
                lines.append("")
                in_list = False
            lines.append(line)
    return "\n".join(lines)
