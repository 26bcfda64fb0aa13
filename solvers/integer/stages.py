"""A step, or one layer's backward, cut into stages: what the integer program is stated over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum


class Start(Enum):
    """Whether a piece is there when the first stage begins."""

    ABSENT = "absent"
    KEPT = "kept"  # if the program keeps it, which counts as kept bytes
    COUNTED = "counted"  # if anything needs it; counts at every moment, but not as kept bytes
    GIVEN = "given"  # if anything needs it; its bytes are not counted unless it dies and is made again


@dataclass(frozen=True)
class Piece:
    """A value whose life the program decides on; or (`value` < 0) the generator state of an operation drawn again.

    maker: the repeatable operation (by its place in `Stages.repeatables`) that makes it, -1 if none does.
    born: the stage whose own operation makes it, -1 if none does. stays: never freed once it is there. due: the
    stage at whose beginning it has to be there, -1 if none. read_at: stages whose own operation reads it. readers:
    repeatable operations that read it.
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

    momentary_bytes: what it takes while it runs, what it makes included. first: the first stage it may run in. last:
    the last one in which anything can use what it makes.
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
    """What runs once at the end of a stage: `ops`, one after the other; reads and makes are pieces.

    fixed_bytes: the highest moment of `ops`, without pieces but for those being made. base_bytes: what is alive
    without pieces while repeatable operations run before them. May be negative where bytes are counted relative to
    the first stage's beginning.
    """

    ops: tuple[int, ...]
    fixed_bytes: int
    base_bytes: int
    reads: tuple[int, ...] = ()
    makes: tuple[int, ...] = ()
    opens: bool = False  # a repeatable operation has to wait for it
    marks: bool = False  # something is due right after it: the end of forward, the end

    @property
    def plain(self) -> bool:
        """Whether it leaves all pieces as they are, and what may run as well."""
        return not (self.reads or self.makes or self.opens or self.marks)


@dataclass(frozen=True)
class Stages:
    """Stages in order, with the pieces and the repeatable operations (in trace order) between them.

    alive[v]: the first and the last stage at whose beginning piece v may be alive (the first after the last if
    never); stage len(stages) is the end.
    """

    stages: tuple[Stage, ...]
    pieces: tuple[Piece, ...]
    repeatables: tuple[Repeatable, ...]
    alive: tuple[tuple[int, int], ...] = ()


def merged(stages: Sequence[Stage], rounds: int = 1) -> tuple[tuple[Stage, ...], list[int]]:
    """(fewer stages with the same optimum, for each given stage the one it became part of).

    Consider what runs in the gap between two stages, a then b.
    If a is plain, b is at least as high and the gap's base is no lower than that of the gap before a, it may as well
    run before a: a then sees the pieces that b sees, at most as high as b, and b sees the same.
    If b is plain, a makes no piece and is at least as high, and the gap's base is no lower than that of the gap after
    b, it may as well run after b: b then sees the pieces that are alive right after a, and is no higher than a.
    Either way nothing need run in the gap, and both are one stage as high as the higher one.
    (A stage after the last one has the base of the last gap, so that nothing moves behind the end.)

    rounds: how many stages each gap is cut into, the others without operations of their own.
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
        kept = b if earlier else a
        fewer[at : at + 2] = [replace(kept, ops=a.ops + b.ops, base_bytes=a.base_bytes)]
        group[at : at + 2] = [group[at] + group[at + 1]]
        at = max(at - 1, 0)
    became = [0] * len(stages)
    for number, members in enumerate(group):
        for member in members:
            became[member] = number * rounds + rounds - 1
    empty = [[Stage((), one.base_bytes, one.base_bytes)] for one in fewer]
    return tuple(
        stage for one, extra in zip(fewer, empty, strict=True) for stage in [*extra * (rounds - 1), one]
    ), became


def with_windows(stages: Sequence[Stage], pieces: Sequence[Piece], repeatables: Sequence[Repeatable]) -> Stages:
    """The stages with what can never be of use ruled out.

    A repeatable operation runs no earlier than all that it reads can be there, and no later than the last stage in
    which something made from it is read by an operation that runs once, or is due.
    """
    count = len(stages)
    first_alive = [count + 1] * len(pieces)
    for number, piece in enumerate(pieces):
        if piece.start is not Start.ABSENT:
            first_alive[number] = 0
        elif piece.born >= 0:
            first_alive[number] = piece.born + 1
    placed: list[Repeatable] = []
    for one in repeatables:
        first = one.first
        for number in one.reads:
            made_in = count + 1 if pieces[number].maker < 0 else placed[pieces[number].maker].first
            first = max(first, min(first_alive[number], made_in))
        for number in one.makes:
            first_alive[number] = min(first_alive[number], first + 1)
        placed.append(replace(one, first=first))
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
    """How many variables the program of these stages has, more or less."""
    runs = sum(max(one.last - one.first + 1, 0) for one in cut.repeatables)
    return runs + sum(max(last - first + 1, 0) for first, last in cut.alive)
