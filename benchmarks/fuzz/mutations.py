"""Damages files at random: bytes, and what JSON says, as accidents and malice do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

# What a part of a file is replaced by: other kinds, other bounds, what a terminal or a shell would act on.
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        [],
        {},
        "",
        0,
        1,
        -1,
        2,
        3,
        0.5,
        -0.0,
        1e300,
        1e-300,
        float("inf"),
        float("-inf"),
        float("nan"),
    ),
    *(2**31, 2**53 + 1, 2**63, 2**64, 10**23, 10**30, -(2**63)),
    *("\x1b]0;x\x07", "\x1b[2J", "a\nb = 1\n", "\u202e", "\ud800", "\x00", "x" * 2000, "1", "inf", "run", "__class__"),
    *("__import__('os').system('touch /tmp/owned')", "{0.__class__}", "%s%n", "';--", "../../etc/passwd", "$(id)"),
    *([0], [[]], [None], ["run", 0], {"a": {}}, [1, 2, 3], ["exec", "import os"], {"__reduce__": ["os.system", "id"]}),
)


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    """The content with one to three pieces of it changed."""
    for _ in range(chance.randint(1, 3)):
        content = chance.choice(_ON_BYTES)(content, chance)
    return content


def mutated_json(told: Any, chance: random.Random) -> str:
    """What JSON says with one to four of its parts changed, as JSON again (with what only Python's has)."""
    told = json.loads(json.dumps(told))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(_ON_PARTS)(told, chance)
    return json.dumps(told)


def mutated_schedule(told: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A plan as `plan_to_dict` gives it, with a few instructions or the bounds of segments moved about.

    Many of these are plans still, if odd ones: something runs once more, earlier or later, or in another segment.
    """
    steps: list[list[Any]] = [[*one] for one in told["instructions"]]
    segments = [[*one] for one in told["segments"]]
    for _ in range(chance.choice((1, 1, 2, 3))):
        place, other = chance.randrange(len(steps)), chance.randrange(len(segments))
        kind = chance.choice(("move", "copy", "swap", "drop", "bound", "bound", "run", "free"))
        if kind == "move":
            steps.insert(max(0, place + chance.randint(-9, 9)), steps.pop(place))
        elif kind == "copy":
            steps[place:place] = [[*chance.choice(steps)]]
            _shift(segments, place, 1)
        elif kind == "swap" and place:
            steps[place - 1], steps[place] = steps[place], steps[place - 1]
        elif kind == "drop":
            del steps[place]
            _shift(segments, place, -1)
        elif kind == "bound" and other:
            bound = segments[other][1] + chance.randint(-4, 4)
            segments[other][1] = segments[other - 1][2] = bound
        elif kind == "run":
            steps[place:place] = [["run", chance.randrange(len(told["problem"]["ops"]))]]
            _shift(segments, place, 1)
        elif kind == "free":
            frees = [n for n, one in enumerate(steps) if one[0] in ("free", "free_code", "forget")]
            if frees:
                at = chance.choice(frees)
                steps.insert(chance.randrange(len(steps)), steps.pop(at))
    return {**told, "instructions": steps, "segments": segments}


def _shift(segments: list[list[Any]], place: int, by: int) -> None:
    for segment in segments:
        segment[1] += by * (segment[1] > place)
        segment[2] += by * (segment[2] > place)


def _place(length: int, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(length + 1)
    return start, min(length, start + int(chance.paretovariate(0.7)))


def _flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content or b"\0")
    for _ in range(chance.randint(1, 4)):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(content: bytes, chance: random.Random) -> bytes:
    start, stop = _place(len(content), chance)
    return chance.choice((content[:start], content[start:], content[:start] + content[stop:]))


def _repeat(content: bytes, chance: random.Random) -> bytes:
    start, stop = _place(len(content), chance)
    return content[:stop] + content[start:stop] * chance.randint(1, 3) + content[stop:]


def _insert(content: bytes, chance: random.Random) -> bytes:
    start, _ = _place(len(content), chance)
    added = chance.choice(
        (
            *(chance.randbytes(chance.randint(1, 40)), b"[" * 3000, b"{" * 50, b'{"a":' * 2000, b"9" * 5000),
            *(b"1e999", b"NaN", b"-Infinity", b"\x00" * 100, b"\xff\xfe", b"\x1b[2J", b"null", b"[]", b'"\\ud800"'),
        )
    )
    return content[:start] + added + content[start + chance.choice((0, len(added))) :]


def _swap(content: bytes, chance: random.Random) -> bytes:
    (a, b), (c, d) = sorted((_place(len(content), chance), _place(len(content), chance)))
    return content if b > c else content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


_ON_BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (_flip, _flip, _cut, _repeat, _insert, _swap)


def _somewhere(told: Any, chance: random.Random) -> tuple[Any, Any] | None:
    """A list or dict within, and a place in it; the deeper ones as often as those above."""
    here, deeper = told, []
    while isinstance(here, (dict, list)) and here:
        place = chance.choice([*here]) if isinstance(here, dict) else chance.randrange(len(here))
        deeper.append((here, place))
        here = here[place]
    return chance.choice(deeper) if deeper else None


def _replace(told: Any, chance: random.Random) -> None:
    if (at := _somewhere(told, chance)) is not None:
        at[0][at[1]] = chance.choice(ODD)


def _nudge(told: Any, chance: random.Random) -> None:
    if (at := _somewhere(told, chance)) is None:
        return
    before = at[0][at[1]]
    if type(before) in (int, float):
        at[0][at[1]] = chance.choice(
            (before + 1, before - 1, -before, before * 2, before // 2, before + 0.5, str(before))
        )
    elif type(before) is bool:
        at[0][at[1]] = not before
    elif isinstance(before, str):
        at[0][at[1]] = chance.choice((before[1:], before + "x", before.upper(), before + "\x1b[0m", before * 2))


def _remove(told: Any, chance: random.Random) -> None:
    if (at := _somewhere(told, chance)) is not None:
        del at[0][at[1]]


def _copy(told: Any, chance: random.Random) -> None:
    first, second = _somewhere(told, chance), _somewhere(told, chance)
    if first is not None and second is not None:
        first[0][first[1]] = json.loads(json.dumps(second[0][second[1]]))


def _exchange(told: Any, chance: random.Random) -> None:
    if (at := _somewhere(told, chance)) is not None:
        other = chance.choice([*at[0]]) if isinstance(at[0], dict) else chance.randrange(len(at[0]))
        at[0][at[1]], at[0][other] = at[0][other], at[0][at[1]]


def _add(told: Any, chance: random.Random) -> None:
    if (at := _somewhere(told, chance)) is not None:
        if isinstance(at[0], dict):
            at[0][chance.choice(("__class__", "kind", "reads", "\x1b", "", "encodings", "error"))] = chance.choice(ODD)
        else:
            at[0].insert(at[1], chance.choice((*ODD, at[0][at[1]])))


_ON_PARTS: tuple[Callable[[Any, random.Random], None], ...] = (
    *(_replace, _replace, _nudge, _nudge, _nudge, _remove, _copy, _exchange, _exchange, _add),
)
