"""The body of a generated function before it is text: calls, views, deletions and notes, in order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

_MARKED = re.compile("\x01(\\d+)\x01")
_LONGEST_INLINE = 72  # characters of a view that is written where it is read


@dataclass(frozen=True)
class Call:
    """A statement that runs a kernel, or names a view."""

    text: str


@dataclass(frozen=True)
class Deleted:
    """Names that nothing reads from here on."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Note:
    """A comment on the lines after it."""

    text: str


@dataclass(frozen=True)
class View:
    """A view at the place of its first use.

    hint: its name, if it gets one.
    text: the expression that makes it.
    """

    number: int
    hint: str
    text: str


@dataclass
class Body:
    """The lines of one function.

    A short view that is read once is written where it is read; other views get names. Until `settle` decides which,
    marks in the text stand for views. Either way the bytes are freed when their base is deleted.
    """

    lines: list[Call | Deleted | Note | View] = field(default_factory=list)
    views: int = 0

    def call(self, text: str) -> None:
        """Add a statement."""
        self.lines.append(Call(text))

    def view(self, hint: str, text: str) -> str:
        """Add a view and return the mark that stands for it."""
        self.lines.append(View(self.views, hint, text))
        self.views += 1
        return f"\x01{self.views - 1}\x01"

    def delete(self, *names: str) -> None:
        """Delete names, which may be marks of views."""
        self.lines.append(Deleted(names))

    def note(self, text: str) -> None:
        """Add a comment on the lines that follow."""
        self.lines.append(Note(text))

    def settle(
        self, results: Sequence[str], fresh: Callable[[str], str]
    ) -> tuple[list[Call | Deleted | Note], list[str]]:
        """Return the lines and the results of the function without marks.

        fresh: returns an unused name for a hint.
        """
        texts = [line.text for line in self.lines if isinstance(line, Call | View)]
        reads = Counter(number for text in (*texts, *results) for number in _numbers(text))
        shown: dict[int, str] = {}
        lines: list[Call | Deleted | Note] = []
        for line in self.lines:
            if isinstance(line, View):
                shown[line.number] = text = _shown(line.text, shown)
                if reads[line.number] > 1 or (reads[line.number] and len(text) > _LONGEST_INLINE):
                    shown[line.number] = fresh(line.hint)
                    lines.append(Call(f"{shown[line.number]} = {text}"))
            elif isinstance(line, Call):
                lines.append(Call(_shown(line.text, shown)))
            elif isinstance(line, Deleted):
                names = (_shown(name, shown) for name in line.names)
                lines.append(Deleted(tuple(name for name in names if name.isidentifier())))
            else:
                lines.append(line)
        return list(_joined(lines)), [_shown(text, shown) for text in results]


def _joined(lines: Sequence[Call | Deleted | Note]) -> Iterator[Call | Deleted | Note]:
    """Yield the lines with deletions at the same point joined, without notes on nothing or repeated ones.

    Names also end with the function, so that deletions after the last call say nothing.
    """
    deleted: list[str] = []
    note: Note | None = None
    noted: Note | None = None
    for line in lines:
        if isinstance(line, Deleted):
            deleted += line.names
        elif isinstance(line, Note):
            note = line
        else:
            if deleted:
                yield Deleted(tuple(dict.fromkeys(deleted)))
            if note is not None and note != noted:
                yield note
            yield line
            deleted, note, noted = [], None, note or noted


def _numbers(text: str) -> list[int]:
    return [int(number) for number in _MARKED.findall(text)]


def _shown(text: str, shown: dict[int, str]) -> str:
    return _MARKED.sub(lambda match: shown[int(match.group(1))], text)
