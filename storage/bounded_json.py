"""Reads JSON that anyone may have written, within stated bounds; any fault in it is a ValueError."""

from __future__ import annotations

import json
import math
from typing import Any

_MOST_DIGITS = 24  # of integers: more than any number of bytes has
_MOST_CHARACTERS = 64  # of other numbers: Python's own have at most 25


def read_json(content: bytes | str, most_parts: int, *, finite: bool = True) -> Any:
    """Return the plain dicts, lists, texts and numbers of a JSON document.

    Raises ValueError for anything but JSON, for numbers with too many digits, and for lists nested beyond Python's
    depth.

    most_parts: the limit of lists, dicts and elements. They are counted before reading; brackets and commas in texts
        count as well.
    finite: whether numbers must be finite.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    parts = text.count(",") + text.count("[") + text.count("{")
    if parts > most_parts:
        raise ValueError(f"it has about {parts:,} parts, more than {most_parts:,}")
    hooks: dict[str, Any] = {"parse_constant": _reject_non_finite, "parse_float": _parse_float} if finite else {}
    try:
        return json.loads(text, parse_int=_parse_integer, **hooks)
    except RecursionError:
        raise ValueError("its lists are nested deeper than Python can read") from None


def _parse_integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits, more than {_MOST_DIGITS}")
    return int(text)


def _parse_float(text: str) -> float:
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"a number has {len(text):,} characters, more than {_MOST_CHARACTERS}")
    number = float(text)
    return number if math.isfinite(number) else _reject_non_finite(text)


def _reject_non_finite(text: str) -> float:
    raise ValueError(f"the number {text} is not finite")
