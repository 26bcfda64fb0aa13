"""Reads JSON that anyone may have written, within stated bounds; whatever is wrong with it is a ValueError."""

from __future__ import annotations

import json
import math
from typing import Any

_MOST_DIGITS = 24  # of whole numbers: more than any number of bytes has
_MOST_LETTERS = 64  # of other numbers: Python's own have at most 25


def read_json(content: bytes | str, most_parts: int, *, finite: bool = True) -> Any:
    """What JSON says: plain dicts, lists, texts and numbers.

    most_parts: how many lists, dicts and elements it may have; counted before it is read, and those that a text only
    looks like are counted too. finite: whether numbers must be finite. Raises ValueError for anything else than JSON,
    for numbers with more digits than numbers have, and for lists within lists beyond Python's depth.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    parts = text.count(",") + text.count("[") + text.count("{")
    if parts > most_parts:
        raise ValueError(f"it has about {parts:,} parts, more than {most_parts:,}")
    hooks: dict[str, Any] = {"parse_constant": _no_number, "parse_float": _finite} if finite else {}
    try:
        return json.loads(text, parse_int=_whole, **hooks)
    except RecursionError:
        raise ValueError("lists lie in lists deeper than can be read") from None


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    if len(text) > _MOST_LETTERS:
        raise ValueError(f"a number has {len(text):,} letters")
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not finite")
