"""Text from outside (names, paths, what files hold) made safe to print: it cannot move a cursor or reorder a line."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""The text with every character that is not printed itself as an escape: ESC is `\x1b`, a newline `\n`.

    Escaped are control characters, separators of lines and paragraphs, marks that change the direction of writing or
    have no width, lone surrogates, and spaces other than the ordinary one. The result is one line.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return ascii(letter)[1:-1]


def printable_lines(text: str) -> str:
    """The text with its lines as they are, each of them printable."""
    return "\n".join(map(printable, text.split("\n")))
