"""Stages of a step or of one block's backward, over which the integer program is stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Start(Enum):
    """The presence of a piece when the first stage begins, and how its bytes count."""

    ABSENT = "absent"
    KEPT = "kept"  # if the program keeps it, which counts as kept bytes
    COUNTED = "counted"  # if anything needs it; counts at every moment, but not as kept bytes
    GIVEN = "given"  # if anything needs it; its bytes are not counted unless it dies and is recomputed


@dataclass(frozen=True)
class Piece:
    """A value whose lifetime the program decides; or (`value` < 0) the generator state of a recomputed draw.

    maker: the repeatable operation (by its place in `Stages.repeatables`) that makes it, -1 if none does.
    born: the stage whose own operation makes it, -1 if none does.
    start: its presence when the first stage begins.
    stays: never freed once it is there.
    due: the stage at whose beginning it must be there, -1 if none.
    read_at: stages whose own operation reads it.
    readers: repeatable operations that read it.
    """

    value: int
    size_bytes: int
    maker: int = -1
    born: int = -1
    start: Start = Start.ABSENT
    stays: bool = False
    due: int = -1
    read_at: tuple[int, ...] = ()
    readers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Repeatable:
    """An operation that may run in any stage, at most once in each; reads and makes are pieces.

    momentary_bytes: taken while it runs, with the values it makes.
    first: the first stage it may run in.
    last: the last stage in which the pieces it makes can be used.
    """

    op: int
    seconds: float
    momentary_bytes: int
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    first: int = 0
    last: int = -1


@dataclass(frozen=True)
class Stage:
    """A stage: repeatable operations may run in it, then its own operations run once; reads and makes are pieces.

    Bytes may be negative where they are relative to the first stage's beginning.

    ops: the stage's own operations, in order.
    fixed_bytes: the peak of `ops`, with the pieces being made but no others.
    base_bytes: alive without pieces while repeatable operations run before `ops`.
    """

    ops: tuple[int, ...]
    fixed_bytes: int
    base_bytes: int
    reads: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    opens: bool = False  # a repeatable operation must wait for it
    marks: bool = False  # pieces are due right after it: the end of forward, the end

    @property
    def plain(self) -> bool:
        """True if it changes neither the pieces nor the operations that may run."""
        return not (self.reads or self.makes or self.opens or self.marks)


@dataclass(frozen=True)
class Stages:
    """Stages in order, with the pieces and the repeatable operations (in trace order) between them.

    alive[v]: the first and the last stage at whose beginning piece v may be alive, the first after the last if never;
        stage len(stages) is the end.
    """

    stages: tuple[Stage, ...]
    pieces: tuple[Piece, ...]
    repeatables: tuple[Repeatable, ...]
    alive: tuple[tuple[int, int], ...] = ()


def merged(stages: Sequence[Stage], rounds: int = 1) -> tuple[tuple[Stage, ...], list[int]]:
    """Return (fewer stages with the same optimum, for each given stage the stage it became part of).

    Consider the runs in the gap between two stages, a then b.
    If a is plain, b is at least as high and the gap's base is no lower than that of the gap before a, they may move
    before a: a then sees the pieces that b sees, at most as high as b, and b sees the same.
    If b is plain, a makes no piece and is at least as high, and the gap's base is no lower than that of the gap after
    b, they may move after b: b then sees the pieces that are alive right after a, and is no higher than a.
    In both cases the gap stays empty, and both stages become one as high as the higher one.
    (A stage after the last one has the base of the last gap, so that no run moves behind the end.)

    rounds: the number of stages that each gap is cut into; the others have no operations of their own.
    """
    group: list[list[int]] = [[index] for index in range(len(stages))]
    fewer = list(stages)
    at = 0
    while at + 1 < len(fewer):
        a, b = fewer[at], fewer[at + 1]
        after = fewer[at + 2].base_bytes if at + 2 < len(fewer) else None
        earlier = a.plain and b.fixed_bytes >= a.fixed_bytes and b.base_bytes >= a.base_bytes
        later = b.plain and not a.makes and not a.marks and a.fixed_bytes >= b.fixed_bytes
        later = later and after is not None and b.base_bytes >= after
        if not (earlier or later):
            at += 1
            continue
        merged_stage = b if earlier else a
        fewer[at : at + 2] = [replace(merged_stage, ops=a.ops + b.ops, base_bytes=a.base_bytes)]
        group[at : at + 2] = [group[at] + group[at + 1]]
        at = max(at - 1, 0)
    merged_into = [0] * len(stages)
    for number, members in enumerate(group):
        for member in members:
            merged_into[member] = number * rounds + rounds - 1
    empty = [[Stage((), stage.base_bytes, stage.base_bytes)] for stage in fewer]
    return tuple(
        stage for last, extra in zip(fewer, empty, strict=True) for stage in [*extra * (rounds - 1), last]
    ), merged_into


def with_windows(stages: Sequence[Stage], pieces: Sequence[Piece], repeatables: Sequence[Repeatable]) -> Stages:
    """Return the stages with useless runs and pieces ruled out.

    A repeatable operation runs only once all pieces it reads can be there, and no later than its results can be used:
    a piece made from them is read by an operation that runs once, or is due.
    """
    count = len(stages)
    first_alive = [count + 1] * len(pieces)
    for number, piece in enumerate(pieces):
        if piece.start is not Start.ABSENT:
            first_alive[number] = 0
        elif piece.born >= 0:
            first_alive[number] = piece.born + 1
    placed: list[Repeatable] = []
    for repeatable in repeatables:
        first = repeatable.first
        for number in repeatable.reads:
            made_in = count + 1 if pieces[number].maker < 0 else placed[pieces[number].maker].first
            first = max(first, min(first_alive[number], made_in))
        for number in repeatable.makes:
            first_alive[number] = min(first_alive[number], first + 1)
        placed.append(replace(repeatable, first=first))
    last_alive = [-1] * len(pieces)
    for place in range(len(placed) - 1, -2, -1):
        for number, piece in enumerate(pieces):
            if piece.maker == place:
                runs = [placed[reader].last for reader in piece.readers]
                last_alive[number] = max((*piece.read_at, piece.due, *runs), default=-1)
        if place >= 0:
            makes = placed[place].makes
            uses = [pieces[n].due - 1 if pieces[n].stays else min(last_alive[n], count - 1) for n in makes]
            placed[place] = replace(placed[place], last=max(uses, default=-1))
    windows = []
    for number, piece in enumerate(pieces):
        ever = last_alive[number] >= 0
        windows.append((first_alive[number], count if piece.stays and ever else last_alive[number]))
    return Stages(tuple(stages), tuple(pieces), tuple(placed), tuple(windows))


def choices(cut: Stages) -> int:
    """Return approximately how many variables the program of these stages has."""
    runs = sum(max(repeatable.last - repeatable.first + 1, 0) for repeatable in cut.repeatables)
    return runs + sum(max(last - first + 1, 0) for first, last in cut.alive)
