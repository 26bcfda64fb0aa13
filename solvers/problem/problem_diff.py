"""Describe in a few words where two problems are different programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest

from .problem import Op, Problem, Value

_MOST_NAMED = 3  # encodings, of the many that a value may have
_MOST_LETTERS = 60  # limit for an argument of an operation
_STRIDES = re.compile(r"(\[[\d, ]*\])\([\d, ]*\)\w*")

# Fields that a schedule depends on, with the description of a difference.
_OP_FIELDS = {
    "reads": "reads other values here than there",
    "makes": "makes other values here than there",
    "block": "lies in another block here than there",
    "repeatable": "may be recomputed in one of them only",
    "random": "draws random numbers in one of them only",
}


def difference_of(here: Problem, there: Problem) -> str | None:
    """Return the first difference, None if a schedule of one problem is one of the other."""
    difference = next(_differences(here, there), None)
    if difference is None and here.fingerprint != there.fingerprint:
        return f"it is cut into {len(here.block_classes)} blocks here, into {len(there.block_classes)} or others there"
    return difference


def _differences(here: Problem, there: Problem) -> Iterator[str]:
    for op, other_op in zip(here.ops, there.ops, strict=False):
        if op.kind != other_op.kind:
            yield _compare_kinds(op, other_op)
        for name, text in _OP_FIELDS.items():
            if getattr(op, name) != getattr(other_op, name):
                yield f"{_describe_op(op)} {text}"
    if len(here.ops) != len(there.ops):
        yield f"it has {len(here.ops)} operations here, {len(there.ops)} there"
    for maker, value, other_value in zip(here.maker, here.values, there.values, strict=False):
        name = f"what {_describe_op(here.ops[maker])} makes" if maker >= 0 else value.name
        if value.size_bytes != other_value.size_bytes:
            yield f"{name} has {value.size_bytes:,} bytes here, {other_value.size_bytes:,} there"
        if (value.held, value.resident) != (other_value.held, other_value.resident):
            yield f"{name} {_describe_lifetime(value)} here, and {_describe_lifetime(other_value)} there"
        if value.stated_encodings != other_value.stated_encodings:
            own_text = _describe_encodings(value, other_value)
            other_text = _describe_encodings(other_value, value)
            yield f"{name} may be kept {own_text} here, {other_text} there"
    if len(here.values) != len(there.values):
        yield f"it has {len(here.values)} values here, {len(there.values)} there"


def _describe_op(op: Op) -> str:
    return f"{op.name} of {op.module}" if op.module else op.name


def _describe_lifetime(value: Value) -> str:
    if value.resident:
        return "is resident before the step"
    return "stays to the end" if value.held else "can be freed"


def _describe_encodings(value: Value, other: Value) -> str:
    """Name the codes of a value, first those that the other value does not have."""
    if not value.encodings:
        return "only unencoded"
    known = set(other.stated_encodings)
    own = [name for name in value.stated_encodings if name not in known]
    names = [name for name, _, _ in own or value.stated_encodings]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"in {len(value.encodings)} codes ({', '.join(names[:_MOST_NAMED])}{more})"


def _compare_kinds(op: Op, other_op: Op) -> str:
    """Describe how two operations differ: in name, or in the first argument."""
    for call, other_call in zip_longest(op.kind.split(" > "), other_op.kind.split(" > "), fillvalue="nothing"):
        (name, arguments), (other_name, other_arguments) = _split_call(call), _split_call(other_call)
        if name != other_name:
            return f"{_describe_op(op)} runs {_shorten_name(name)} here, {_shorten_name(other_name)} there"
        for first, second in zip_longest(arguments, other_arguments, fillvalue="nothing"):
            if first != second:
                plain, other_plain = _STRIDES.sub(r"\1", first), _STRIDES.sub(r"\1", second)
                if plain == other_plain:
                    plain, other_plain = first, second
                return f"{_describe_op(op)} is given {_shorten(plain)} here, {_shorten(other_plain)} there"
    return f"{_describe_op(op)} is another operation here than there"


def _split_call(call: str) -> tuple[str, list[str]]:
    """Split a call into its name and its arguments."""
    name, _, rest = call.partition("(")
    parts, depth, start = [], 0, 0
    text = rest.removesuffix(")")
    for place, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    return name, [*parts, text[start:].strip()]


def _shorten_name(name: str) -> str:
    return _shorten(name.removeprefix("aten.").removesuffix(".default"))


def _shorten(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 2]} …"
