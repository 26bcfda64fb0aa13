"""The flat list of instructions that a training step becomes."""

from __future__ import annotations

from dataclasses import dataclass, field

from .schedule_text import schedule_text


@dataclass(frozen=True, slots=True)
class Run:
    """Run operation `op`; a second run of the same operation rematerializes its results."""

    op: int


@dataclass(frozen=True, slots=True)
class Record:
    """Record the generator state before the random operation `op` draws from it, for a later second run."""

    op: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Free the generator state recorded for operation `op`."""

    op: int


@dataclass(frozen=True, slots=True)
class Free:
    """Free `value`."""

    value: int


@dataclass(frozen=True, slots=True)
class Encode:
    """Make a code of `value`, which is alive, by its encoding number `encoding`; the value stays alive."""

    value: int
    encoding: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Make `value` alive again from its code by encoding number `encoding`; the code stays alive.

    If the code is read itself (`EncodingOption.is_read_itself`), readers of the value need the code to be alive.
    """

    value: int
    encoding: int


@dataclass(frozen=True, slots=True)
class FreeCode:
    """Free the code of `value` by its encoding number `encoding`."""

    value: int
    encoding: int


Instruction = Run | Record | Forget | Free | Encode | Decode | FreeCode


@dataclass(frozen=True, slots=True)
class Segment:
    """Instructions [start, stop): the forward or backward of one block, with the recomputation just before it."""

    block: int
    start: int
    stop: int


@dataclass(frozen=True)
class Schedule:
    """Instructions of forward and backward, cut into segments.

    `segments` covers the instructions without gaps: forward segments of blocks 0..n-1, then backward segments
    of blocks n-1..0. The first instruction of backward is `segments[n].start`.
    """

    instructions: tuple[Instruction, ...] = field(repr=False)
    segments: tuple[Segment, ...] = field(repr=False)

    def __str__(self) -> str:
        return schedule_text(self)

    @property
    def forward_length(self) -> int:
        """The number of instructions of forward."""
        return self.segments[len(self.segments) // 2].start if self.segments else 0

    @property
    def encoded(self) -> tuple[tuple[int, int], ...]:
        """Each encoded value with the number of its encoding, once, in the order of the instructions."""
        encodes = (instruction for instruction in self.instructions if isinstance(instruction, Encode))
        return tuple(dict.fromkeys((instruction.value, instruction.encoding) for instruction in encodes))

    def ends_with(self, index: int, value: int | None) -> bool:
        """Return whether a value dies with the run at an instruction: it is freed before anything else happens."""
        for position in range(index + 1, len(self.instructions) if value is not None else 0):
            instruction = self.instructions[position]
            if isinstance(instruction, (Run, Record, Encode, Decode)):
                return False
            if instruction == Free(value):  # pyright: ignore
                return True
        return False
