"""Text from outside reaches a terminal as letters only."""

from __future__ import annotations

import pytest
from lowtide.solvers.problem.plain_text import printable, shortened


@pytest.mark.parametrize(
    "text, shown",
    [
        ("transformer.h.0", "transformer.h.0"),
        ("größe 12 × µ", "größe 12 × µ"),
        ("", ""),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x00\x07\x7f\x85\x9b", r"\x00\x07\x7f\x85\x9b"),
        ("line\u2028paragraph\u2029", r"line\u2028paragraph\u2029"),
        ("\u202egnp.exe\u2066\u200b\ufeff", r"\u202egnp.exe\u2066\u200b\ufeff"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_is_not_printed_itself_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_every_character_gives_one_printable_line() -> None:
    every = "".join(map(chr, (*range(0x3100), *range(0xD700, 0x10000), *range(0xE0000, 0xE0200))))
    assert printable(every).isprintable()
    assert len(printable(every).splitlines()) == 1


def test_what_is_too_long_is_cut_after_it_is_escaped():
    assert shortened("a\nb", 10) == r"a\nb"
    assert shortened("\x1b" * 10, 10) == r"\x1b\x1b\x …"
    assert len(shortened("x" * 10**6)) < 510
