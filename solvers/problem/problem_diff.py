"""Says in a few words where two problems are different programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest

from .problem import Op, Problem, Value

_MOST_NAMED = 3  # encodings, of the many that a value may have
_MOST_LETTERS = 60  # of what an operation is told
_STRIDES = re.compile(r"(\[[\d, ]*\])\([\d, ]*\)\w*")

# What a schedule depends on, and how it is told.
_OF_OPS = {
    "reads": "reads other values here than there",
    "makes": "makes other values here than there",
    "block": "lies in another block here than there",
    "repeatable": "may run again in one of them only",
    "random": "draws random numbers in one of them only",
}


def difference_of(here: Problem, there: Problem) -> str | None:
    """The first difference; None if a schedule of one problem is one of the other."""
    found = next(_differences(here, there), None)
    if found is None and here.fingerprint != there.fingerprint:
        return f"it is cut into {len(here.block_classes)} blocks here, into {len(there.block_classes)} or others there"
    return found


def _differences(here: Problem, there: Problem) -> Iterator[str]:
    for mine, its in zip(here.ops, there.ops, strict=False):
        if mine.kind != its.kind:
            yield _kinds_text(mine, its)
        for name, told in _OF_OPS.items():
            if getattr(mine, name) != getattr(its, name):
                yield f"{_placed(mine)} {told}"
    if len(here.ops) != len(there.ops):
        yield f"it has {len(here.ops)} operations here, {len(there.ops)} there"
    for maker, mine, its in zip(here.maker, here.values, there.values, strict=False):
        name = f"what {_placed(here.ops[maker])} makes" if maker >= 0 else mine.name
        if mine.size_bytes != its.size_bytes:
            yield f"{name} has {mine.size_bytes:,} bytes here, {its.size_bytes:,} there"
        if (mine.held, mine.resident) != (its.held, its.resident):
            yield f"{name} {_lifetime(mine)} here, and {_lifetime(its)} there"
        if mine.stated_encodings != its.stated_encodings:
            yield f"{name} may be kept {_encodings_text(mine, its)} here, {_encodings_text(its, mine)} there"
    if len(here.values) != len(there.values):
        yield f"it has {len(here.values)} values here, {len(there.values)} there"


def _placed(op: Op) -> str:
    return f"{op.name} of {op.module}" if op.module else op.name


def _lifetime(value: Value) -> str:
    if value.resident:
        return "is there before the step"
    return "stays to the end" if value.held else "can be freed"


def _encodings_text(value: Value, other: Value) -> str:
    """In which codes a value may be kept, those first that another one has not."""
    if not value.encodings:
        return "only as it is"
    known = set(other.stated_encodings)
    own = [name for name in value.stated_encodings if name not in known]
    names = [name for name, _, _ in own or value.stated_encodings]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"in {len(value.encodings)} codes ({', '.join(names[:_MOST_NAMED])}{more})"


def _kinds_text(mine: Op, its: Op) -> str:
    """How two operations differ: in name, or in the first thing that they are told."""
    for one, other in zip_longest(mine.kind.split(" > "), its.kind.split(" > "), fillvalue="nothing"):
        (name, told), (its_name, its_told) = _taken_apart(one), _taken_apart(other)
        if name != its_name:
            return f"{_placed(mine)} runs {_plain(name)} here, {_plain(its_name)} there"
        for first, second in zip_longest(told, its_told, fillvalue="nothing"):
            if first != second:
                plain, its_plain = _STRIDES.sub(r"\1", first), _STRIDES.sub(r"\1", second)
                if plain == its_plain:
                    plain, its_plain = first, second
                return f"{_placed(mine)} is given {_shortened(plain)} here, {_shortened(its_plain)} there"
    return f"{_placed(mine)} is another operation here than there"


def _taken_apart(call: str) -> tuple[str, list[str]]:
    """The name of a call, and what it is told, apart."""
    name, _, rest = call.partition("(")
    parts, depth, start = [], 0, 0
    text = rest.removesuffix(")")
    for place, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append(text[start:place].strip())
            start = place + 1
    return name, [*parts, text[start:].strip()]


def _plain(name: str) -> str:
    return _shortened(name.removeprefix("aten.").removesuffix(".default"))


def _shortened(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 2]} …"
