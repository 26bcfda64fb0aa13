"""Assemble generated functions: equal ones once, with the numbers in which they differ as arguments."""

from __future__ import annotations

import io
import tokenize
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from ...passes.sources import Source
from ...solvers.problem.plain_text import printable
from ..text.byte_sizes import format_bytes
from ..text.source_text import comment, literal
from .body import Body, Call, Deleted, Note
from .program import Binding, Key

_MARK = "\x00"
_LEGEND = (
    "A function takes values from the tape of its step. It returns those that it puts there, and its results: outputs "
    "or gradients. Comments name the module and the line of which the kernels below are the forward or the backward."
)
_COLUMNS = 118
_LONGEST_LIST = 100
_LONGEST_BLOCK_NAME = 64


@dataclass
class Rendered:
    """The text of one segment, and the keys that it takes, drops and gives; literals are marked places in the text.

    lines: the lines of the settled body.
    results: a comment on what it returns.
    kept: names and bytes of the values that it keeps for backward.
    recomputed: names and bytes of the values that it recomputes.
    """

    block: int
    phase: str
    body: Body = field(default_factory=Body)
    lines: Sequence[Call | Deleted | Note] = ()
    results: str = ""
    literals: list[Any] = field(default_factory=list)
    takes: list[Key] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    drops: set[Key] = field(default_factory=set)
    gives: list[Key] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    gradients: list[Source] = field(default_factory=list)
    kept: list[tuple[str, int]] = field(default_factory=list)
    recomputed: list[tuple[str, int]] = field(default_factory=list)

    def number(self, value: int | float | tuple[Any, ...]) -> str:
        """Return a marked place for a number or a tuple, which may differ between blocks."""
        self.literals.append(value)
        return f"{_MARK}{len(self.literals) - 1}{_MARK}"

    def bound_to(self, function: str, constants: tuple[Any, ...]) -> Binding:
        """Return the call of this segment's function."""
        return Binding(
            block=self.block,
            function=function,
            takes=tuple(self.takes),
            drops=frozenset(self.drops),
            gives=tuple(self.gives),
            constants=constants,
            gradients=tuple(self.gradients),
        )

    def text(self, notes: bool) -> str:
        """Return the function without its head, with marked literals; with or without comments."""
        lines = [f"{_listed(self.taken, ',')} = values", "values.clear()"] if self.taken else []
        for line in self.lines:
            match line:
                case Call(text):
                    lines.append(text)
                case Deleted(names):
                    lines.append(f"del {_listed(names)}")
                case Note(text):
                    lines += comment(text).splitlines() if notes else ()
        lines += comment(self.results).splitlines() if notes and self.results else ()
        lines.append(f"return {_tuple(self.given)}, {_tuple(self.returned)}")
        return "\n".join(f"    {line}" for line in lines)


def _listed(names: Sequence[str], after_one: str = "") -> str:
    """Return names as targets, in brackets where they may take several lines."""
    listed = f"{', '.join(names)}{after_one if len(names) == 1 else ''}"
    return listed if len(listed) < _LONGEST_LIST else f"({listed})"


def _tuple(names: Sequence[str]) -> str:
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def assemble(
    rendered: Sequence[Rendered], block_names: Sequence[str], header: str, links: Sequence[int]
) -> tuple[str, list[str], list[tuple[Any, ...]]]:
    """Return the code, and for each segment the name of its function and the constants of its call.

    links: the number of blocks in each node of autograd's graph.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for index, segment in enumerate(rendered):
        groups.setdefault((segment.phase, segment.text(notes=False)), []).append(index)
    counts: Counter[str] = Counter()
    names = [""] * len(rendered)
    constants: list[tuple[Any, ...]] = [()] * len(rendered)
    functions = []
    for (phase, _), members in groups.items():
        counts[phase] += 1
        name = f"{phase}_{counts[phase]}"
        literals = [[str(literal(value)) for value in rendered[i].literals] for i in members]
        varying = [j for j in range(len(literals[0])) if len({texts[j] for texts in literals}) > 1]
        for index in members:
            names[index] = name
            constants[index] = tuple(rendered[index].literals[j] for j in varying)
        head = _head([rendered[i] for i in members], block_names)
        # Comments are those of the first member.
        functions.append(_function(name, rendered[members[0]].text(notes=True), literals[0], varying, head))
    table = _table(rendered, names, block_names, links)
    return "\n\n".join([f"{header}\n{comment(_LEGEND)}", *functions, table]) + "\n", names, constants


def _function(name: str, body: str, literals: Sequence[str], varying: Sequence[int], head: str) -> str:
    for index, text in enumerate(literals):
        body = body.replace(f"{_MARK}{index}{_MARK}", f"constant_{index}" if index in varying else text)
    unpack = f"    {', '.join(f'constant_{i}' for i in varying)}, = constants\n" if varying else ""
    lines = "\n".join(_wrapped(line) for line in f"{unpack}{body}".splitlines())
    return f"{head}\ndef {name}(values, constants):\n{lines}"


def _wrapped(line: str) -> str:
    """Return a line of code, broken within the outermost brackets that are long enough where it is too long."""
    text = line.strip()
    if len(line) <= _COLUMNS or text.startswith("#"):
        return line
    breaks, depth = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        depth += (token.string in ("(", "[", "{")) - (token.string in (")", "]", "}"))
        if depth and token.string in (",", "(", "["):
            breaks.append((depth, token.end[1]))
    indent = line[: len(line) - len(line.lstrip())]
    lines, start, room = [], 0, _COLUMNS - len(indent)
    while len(text) - start > room:
        places = [(depth, -stop) for depth, stop in breaks if start < stop <= start + room]
        if not places:
            break
        stop = -min(places)[1]  # the last one in the outermost brackets
        lines.append(text[start:stop].strip())
        start, room = stop, _COLUMNS - len(indent) - 4
    return f"\n{indent}    ".join([f"{indent}{lines[0]}", *lines[1:], text[start:].strip()]) if lines else line


def _head(members: Sequence[Rendered], block_names: Sequence[str]) -> str:
    """Return a comment with the blocks that a function serves, and the values that it keeps and recomputes."""
    names = list(dict.fromkeys(_short(block_names[member.block]) for member in members))
    shown = ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, … {names[-1]}"
    text = f"The {members[0].phase} of {shown}"
    text += f" ({len(members)} blocks; names are those of the first)." if len(members) > 1 else "."
    kept = [member.kept for member in members]
    if any(entries != kept[0] for entries in kept):
        # The same code may serve blocks whose results are, and are not, needed in backward by the next block.
        sizes = [sum(size_bytes for _, size_bytes in entries) for entries in kept]
        text += f" Keeps {format_bytes(min(sizes))} to {format_bytes(max(sizes))}."
    elif kept[0]:
        text += f" Keeps {_sized(kept[0])}."
    if members[0].recomputed:
        text += f" Recomputes: {_sized(members[0].recomputed)}."
    return comment(text)


def _short(name: str) -> str:
    """Return a block's name, cut to a readable length."""
    return name if len(name) <= _LONGEST_BLOCK_NAME else f"{name[:_LONGEST_BLOCK_NAME]}…"


def _sized(entries: Sequence[tuple[str, int]]) -> str:
    """Return the total bytes, and names with counts: `12.0 MiB (2 × mul, tanh)`."""
    counts = Counter(name for name, _ in entries)
    names = ", ".join(f"{count} × {name}" if count > 1 else name for name, count in counts.items())
    return f"{format_bytes(sum(size_bytes for _, size_bytes in entries))} ({names})"


def _table(rendered: Sequence[Rendered], names: Sequence[str], block_names: Sequence[str], links: Sequence[int]) -> str:
    """Return a comment with the functions of each block, and the blocks that are one node of autograd's graph."""
    half = len(rendered) // 2
    shown = [printable(_short(name)) for name in block_names]
    width = max(len(name) for name in shown)
    lines = [comment("block, forward, backward")]
    backward = {rendered[i].block: names[i] for i in range(half, len(rendered))}
    for index in range(half):
        block = rendered[index].block
        lines.append(comment(f"{block:>3} {shown[block]:<{width}}  {names[index]:<12} {backward[block]}"))
    if len(links) < half:
        ends = list(accumulate(links, initial=0))
        ranges = (f"{a}–{b - 1}" if b > a + 1 else f"{a}" for a, b in pairwise(ends))
        lines.append(comment(f"Blocks that are one node of autograd's graph: {', '.join(ranges)}"))
    return "\n".join(lines)
