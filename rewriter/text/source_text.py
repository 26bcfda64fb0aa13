"""Turns names and values into Python source: identifiers, comments and literals.

Names of classes, modules, arguments and keys come from outside and may hold anything. They reach generated code only
through the functions of this file.
"""

from __future__ import annotations

import builtins
import keyword
import math
import re
import textwrap
import unicodedata
from typing import Any

import torch

from ...solvers.problem.plain_text import printable

# Names that have a meaning in generated code.
_MEANT = ("aten", "constants", "device", "drawing_from", "generator_state", "lowtide", "own_gradient", "require")
_MEANT += ("torch", "unused", "values")
_NUMBERED = ("backward", "constant", "forward", "object")  # followed by a number
_RESERVED = frozenset((*_MEANT, *_NUMBERED, *dir(builtins), *keyword.kwlist, *keyword.softkwlist))
_RESERVED_WITH_NUMBER = re.compile(rf"({'|'.join(_NUMBERED)})_\d+")

_LONGEST_NAME = 48
_COMMENT_COLUMNS = 118
# Python looks for a file's encoding in comments, and another one could make code of what follows.
_ENCODING = re.compile(r"coding(?=[:=])")


def is_reserved(name: str) -> bool:
    """Return whether generated code gives a name another meaning: a keyword, a builtin, or a name of its own."""
    return name in _RESERVED or _RESERVED_WITH_NUMBER.fullmatch(name) is not None


def identifier(text: str) -> str:
    """Return a valid, unreserved Python name for any text: `zip_code` for "zip code", `value_3` for "3".

    The name is in ASCII, since Python treats some other letters as equal, and at most 50 characters long. Different
    texts may give the same name.
    """
    plain = unicodedata.normalize("NFKD", text[: 4 * _LONGEST_NAME])
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    name = re.sub(r"[^0-9A-Za-z_]+", "_", plain)[:_LONGEST_NAME].strip("_")
    if not name or name[0].isdigit():
        name = f"value_{name}"[:_LONGEST_NAME].rstrip("_")
    return f"{name}_" if is_reserved(name) else name


def is_plain_name(text: str) -> bool:
    """Return whether a text is valid as the name of an attribute or argument in Python."""
    return text.isascii() and text.isidentifier() and not keyword.iskeyword(text)


def comment(text: str) -> str:
    """Return a text as wrapped lines of comment."""
    safe = _ENCODING.sub("coding ", printable(text))
    return "\n".join(f"# {line}" for line in textwrap.wrap(safe, _COMMENT_COLUMNS)) or "#"


def literal(value: Any) -> str | None:
    """Return an expression that evaluates to the same value, or None if there is none.

    The expression uses `float`, `complex`, `slice`, `torch` and `device` (`torch.device`). The parts of sequences,
    slices and dicts are converted too.
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, (int, torch.SymInt)):
        return repr(int(value))
    if isinstance(value, float):
        return _number(float(value))
    if isinstance(value, complex):
        return f"complex({_number(value.real)}, {_number(value.imag)})"
    if isinstance(value, str):
        return ascii(str.__str__(value))
    if isinstance(value, bytes):
        return bytes.__repr__(value)
    if isinstance(value, torch.device):
        return f"device({str(value)!a})"
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)):
        name = str(value).removeprefix("torch.")
        return f"torch.{name}" if is_plain_name(name) and getattr(torch, name, None) is value else None
    return _container(value)


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    return f'float("{sign}{"nan" if math.isnan(value) else "inf"}")'


def _container(value: Any) -> str | None:
    """Return the literal of a sequence, slice or dict whose parts all have literals."""
    if isinstance(value, slice):
        parts = [literal(part) for part in (value.start, value.stop, value.step)]
        return None if None in parts else f"slice({', '.join(map(str, parts))})"
    if isinstance(value, (list, tuple)):
        parts = [literal(part) for part in value]
        if None in parts:
            return None
        inside = ", ".join(map(str, parts))
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(parts) == 1)})"
    if isinstance(value, dict):
        pairs = [(literal(key), literal(part)) for key, part in value.items()]
        return None if any(None in pair for pair in pairs) else f"{{{', '.join(f'{k}: {v}' for k, v in pairs)}}}"
    return None
