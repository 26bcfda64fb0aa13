"""Names that would do harm if they became code, markup or terminal commands, and a canary that notices it."""

from __future__ import annotations

import builtins
import keyword
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lowtide.kernels.backend import native

CANARY = "lowtide_canary"

# The pieces of harmful names. CALL calls the canary, and would leave a mark if it were run.
_PIECES = (
    "CALL",
    "\nCALL\n",
    "\n    CALL\n#",
    "\rCALL\r",
    "\x0cCALL",
    ";CALL;",
    ")\nCALL\n(",
    "):\n  CALL\ndef f(",
    ",\nx:CALL",
    ", x=CALL",
    "=CALL",
    "' + CALL + '",
    '" + CALL + "',
    '"""\nCALL\n"""',
    "'''\nCALL\n'''",
    "{CALL}",
    "{0.__class__}",
    "{task.fields}",
    "%s%n%(x)d",
    "\\\nCALL",
    "\\u000aCALL",
    "\\N{LINE FEED}CALL",
    "# coding: utf-7\n+AAo-CALL+AAo-",
    "coding=utf-16",
    "\x00",
    "\x00CALL\x000\x00",
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "\x08\x08\x7f",
    "\x85CALL",
    "\u2028CALL\u2029",
    "\u202e\u2066\u200b\ufeff",
    "\ud800",
    "\U000e0041",
    "[red]",
    "[link=file:///etc/passwd]",
    ":smile:",
    "$\\frac{$",
    "../../../etc/passwd",
    "C:\\",
    "zip code",
    "fr-en",
    "w\u00b2",
    "\ufb01",
    "größe",
    "温度",
    "e\u0301",
    "\u0663",
    "1",
    "1" * 5000,
    "x" * 20_000,
    "",
    " ",
    ".",
    "..",
    "-1",
    "__class__",
    "__import__('os')",
    "self",
    "loss",
)
# Names that generated code, fx and Python use themselves.
_TAKEN = (
    *keyword.kwlist,
    *keyword.softkwlist,
    *("aten", "lowtide", "torch", "device", "values", "constants", "constant_0", "constant_1", "constant", "object_1"),
    *("forward_1", "backward_1", "generator_state", "drawing_from", "unused", "float", "complex", "getattr", "slice"),
    *("fx", "root", "input_1", "self", "args", "kwargs", "print", "exec", "open", "NoneType", "Device", "inf", "nan"),
)


def hostile_names(count: int, call: str, seed: int = 0) -> list[str]:
    """Return distinct names: all pieces and taken names, then random combinations. call: what they try to run."""
    chosen = random.Random(seed)
    names = dict.fromkeys(piece.replace("CALL", call) for piece in (*_PIECES, *_TAKEN))
    while len(names) < count:
        parts = chosen.choices((*_PIECES, *chosen.choices(_TAKEN, k=8), "a", "_"), k=chosen.randint(2, 4))
        names["".join(parts).replace("CALL", call)] = None
    return list(names)[:count]


@dataclass
class Canary:
    """Records code that was run although it came from a name. call: the expression that it notices."""

    folder: Path
    sung: list[str] = field(default_factory=list)
    watching: bool = True

    @property
    def call(self) -> str:
        """An expression that calls the canary, and leaves a mark in case another process runs it."""
        return f"({CANARY}('run'),open({str(self.folder / 'mark')!r},'w'))"

    @property
    def harm(self) -> list[str]:
        """Descriptions of what was run."""
        return [*self.sung, *(f"made {path.name}" for path in self.folder.iterdir())]

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Record, as an audit hook, processes that are started and files that are opened in the canary's folder."""
        if not self.watching:
            return
        if event == "subprocess.Popen" and _compiles_a_kernel(arguments[1]):
            return
        if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pty.spawn"):
            self.sung.append(f"{event} {arguments[:2]}")
        elif event == "open" and str(self.folder) in str(arguments[0]):
            self.sung.append(f"{event} {arguments[0]}")


def _compiles_a_kernel(command: object) -> bool:
    """Return whether a command is lowtide's own of the compiler, in which there is no name: C comes on its input."""
    return isinstance(command, (list, tuple)) and tuple(command[1 : len(native._FLAGS) + 1]) == native._FLAGS


@contextmanager
def listening(folder: Path) -> Iterator[Canary]:
    """Enter a context in which a canary listens. folder: an empty one of its own."""
    canary = Canary(folder)
    setattr(builtins, CANARY, canary.sung.append)
    sys.addaudithook(canary.hear)  # stays for as long as the process does
    try:
        yield canary
    finally:
        canary.watching = False
        delattr(builtins, CANARY)
