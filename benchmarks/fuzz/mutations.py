"""Damages files at random, their bytes and the content of their JSON, as accidents and malice do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

# Replacements for parts of a file: other kinds, other bounds, text that a terminal or a shell would act on.
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
    """Return the content with one to three pieces of it changed."""
    for _ in range(chance.randint(1, 3)):
        content = chance.choice(_ON_BYTES)(content, chance)
    return content


def mutated_json(document: Any, chance: random.Random) -> str:
    """Return a JSON document with one to four of its parts changed (with NaN and Infinity, as Python writes it)."""
    document = json.loads(json.dumps(document))
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        chance.choice(_ON_PARTS)(document, chance)
    return json.dumps(document)


def mutated_schedule(plan: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Return a plan as `plan_to_dict` gives it, with a few instructions or bounds of segments moved.

    Many results are still plans, if odd ones: something runs once more, earlier or later, or in another segment.
    """
    steps: list[list[Any]] = [[*step] for step in plan["instructions"]]
    segments = [[*segment] for segment in plan["segments"]]
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
            steps[place:place] = [["run", chance.randrange(len(plan["problem"]["ops"]))]]
            _shift(segments, place, 1)
        elif kind == "free":
            frees = [n for n, step in enumerate(steps) if step[0] in ("free", "free_code", "forget")]
            if frees:
                at = chance.choice(frees)
                steps.insert(chance.randrange(len(steps)), steps.pop(at))
    return {**plan, "instructions": steps, "segments": segments}


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


def _somewhere(document: Any, chance: random.Random) -> tuple[Any, Any] | None:
    """Return a list or dict inside the document and a place in it; deeper ones are as likely as those above."""
    here, deeper = document, []
    while isinstance(here, (dict, list)) and here:
        place = chance.choice([*here]) if isinstance(here, dict) else chance.randrange(len(here))
        deeper.append((here, place))
        here = here[place]
    return chance.choice(deeper) if deeper else None


def _replace(document: Any, chance: random.Random) -> None:
    if (place := _somewhere(document, chance)) is not None:
        place[0][place[1]] = chance.choice(ODD)


def _nudge(document: Any, chance: random.Random) -> None:
    if (place := _somewhere(document, chance)) is None:
        return
    before = place[0][place[1]]
    if type(before) in (int, float):
        place[0][place[1]] = chance.choice(
            (before + 1, before - 1, -before, before * 2, before // 2, before + 0.5, str(before))
        )
    elif type(before) is bool:
        place[0][place[1]] = not before
    elif isinstance(before, str):
        place[0][place[1]] = chance.choice((before[1:], before + "x", before.upper(), before + "\x1b[0m", before * 2))


def _remove(document: Any, chance: random.Random) -> None:
    if (place := _somewhere(document, chance)) is not None:
        del place[0][place[1]]


def _copy(document: Any, chance: random.Random) -> None:
    first, second = _somewhere(document, chance), _somewhere(document, chance)
    if first is not None and second is not None:
        first[0][first[1]] = json.loads(json.dumps(second[0][second[1]]))


def _exchange(document: Any, chance: random.Random) -> None:
    if (place := _somewhere(document, chance)) is not None:
        other = chance.choice([*place[0]]) if isinstance(place[0], dict) else chance.randrange(len(place[0]))
        place[0][place[1]], place[0][other] = place[0][other], place[0][place[1]]


def _add(document: Any, chance: random.Random) -> None:
    if (place := _somewhere(document, chance)) is not None:
        if isinstance(place[0], dict):
            place[0][chance.choice(("__class__", "kind", "reads", "\x1b", "", "encodings", "error"))] = chance.choice(
                ODD
            )
        else:
            place[0].insert(place[1], chance.choice((*ODD, place[0][place[1]])))


_ON_PARTS: tuple[Callable[[Any, random.Random], None], ...] = (
    *(_replace, _replace, _nudge, _nudge, _nudge, _remove, _copy, _exchange, _exchange, _add),
)
