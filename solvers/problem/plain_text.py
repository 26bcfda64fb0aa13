"""Make text from outside (names, paths, file contents) safe to print: it cannot move a cursor or reorder a line."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Return the text with every character that is not printable as an escape: ESC is `\x1b`, a newline `\n`.

    These are control characters, separators of lines and paragraphs, lone surrogates, and spaces other than the
    ordinary one. Marks that change the direction of writing or have no width are escaped too. The result is one line.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return ascii(letter)[1:-1]


def printable_lines(text: str) -> str:
    """Return the text with each of its lines made printable."""
    return "\n".join(map(printable, text.split("\n")))


def shortened(text: str, most_letters: int = 500) -> str:
    """Return the printable text on one line, cut after `most_letters` letters."""
    shown = printable(text[: most_letters + 1])
    return shown if len(shown) <= most_letters else f"{shown[:most_letters]} …"
