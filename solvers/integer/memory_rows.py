"""Rows that limit the bytes alive at every moment, with limits that change from one solution to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd

import pulp

from .answer import Row, Term, is_choice, value_of
from .stage_program import StageProgram
from .stages import Stages, Start

_WHOLE = 10**5  # whole factors up to this stay whole
_DIVISORS = 4  # sizes by which a row is divided and rounded


class Limited:
    """Rows that keep bytes within a limit that may change.

    Each row of choices is also stated divided by a size and rounded down (Chvátal 1973, Gomory 1958). Where all pieces
    take 2 or 8 MiB, a limit of 11 MiB means one of 10 MiB; the relaxation needs the rounded row for that.
    """

    def __init__(self, core: StageProgram, divisors: tuple[int, ...], unit: float) -> None:
        self.core, self.divisors, self.unit = core, divisors, unit
        self.most_bytes = 0
        self._rows: list[tuple[Row, int, int]] = []  # with its fixed bytes and its divisor (0: `unit`)

    def state(self, terms: Iterable[tuple[int, Term]], fixed_bytes: int, rounded: bool = True) -> None:
        """State that the sum of bytes · term plus the fixed bytes is at most the limit."""
        choices: dict[Term, int] = {}
        for size_bytes, term in terms:
            if is_choice(term):
                choices[term] = choices.get(term, 0) + size_bytes
            else:
                fixed_bytes += size_bytes * round(value_of(term, {}))
        self._state([(size / self.unit, term) for term, size in choices.items()], fixed_bytes, 0)
        for divisor in self.divisors if rounded else ():
            factors = [(size // divisor, term) for term, size in choices.items() if size // divisor]
            if factors:
                self._state(factors, fixed_bytes, divisor)

    def _state(self, factors: Sequence[tuple[float, Term]], fixed_bytes: int, divisor: int) -> None:
        row = self.core.program.at_most(factors, self._most(fixed_bytes, divisor))
        self._rows.append((row, fixed_bytes, divisor))

    def _most(self, fixed_bytes: int, divisor: int) -> float:
        room_bytes = self.most_bytes - fixed_bytes
        return room_bytes // divisor if divisor else room_bytes / self.unit

    def limit(self, most_bytes: int) -> None:
        """Set the limit."""
        self.most_bytes = most_bytes
        for row, fixed_bytes, divisor in self._rows:
            row.change(self._most(fixed_bytes, divisor))


class Moments:
    """The limit `peak` on every moment: first while operations that run once run; others are added by `refine`."""

    def __init__(self, core: StageProgram) -> None:
        self.core, self.cut = core, core.cut
        self.peak = Limited(core, divisors_of(core.cut), unit_of(core.cut))
        self.refined: set[int] = set()
        self._needed: list[tuple[pulp.LpVariable, Term, Term]] = []  # each is the larger one of two
        for stage in range(len(self.cut.stages)):
            self._state_own(stage)

    def _state_own(self, stage: int) -> None:
        """State the moment of the stage's own operation: the pieces it reads and those alive afterwards count."""
        own = self.cut.stages[stage]
        terms: list[tuple[int, Term]] = []
        for piece, record in enumerate(self.cut.pieces):
            if piece in own.reads:
                terms.append((record.size_bytes, 1))
            elif piece not in own.makes or record.value < 0:  # a generator state is recorded before
                terms.append((record.size_bytes, self.core.alive(stage + 1, piece)))
        self.peak.state([*terms, *self._given()], own.fixed_bytes)

    def _given(self) -> list[tuple[int, Term]]:
        """Return terms that subtract given pieces, which do not count when the first stage begins."""
        given = [piece for piece, record in enumerate(self.cut.pieces) if record.start is Start.GIVEN]
        return [(-self.cut.pieces[piece].size_bytes, self.core.alive(0, piece)) for piece in given]

    def refine(self, stage: int) -> None:
        """State the moments in which repeatable operations run within a stage.

        While operation k runs, a piece that k or a later operation of the stage makes is alive if it was alive when
        the stage began. Any other piece is alive if k or a later operation of the stage reads it, or if it is alive
        afterwards. If k does not run the row is redundant: those pieces are alive when the next operation runs.
        """
        self.refined.add(stage)
        needed: dict[int, Term] = {}
        for place in range(len(self.cut.repeatables) - 1, -1, -1):
            if is_choice(self.core.runs(stage, place)):
                self._state_needed(stage, place, needed)
                self._state_inner(stage, place, needed)

    def _state_needed(self, stage: int, place: int, needed: dict[int, Term]) -> None:
        """Set needed[v] to a term that is 1 if this or a later run of the stage reads piece v, or it is alive after."""
        program, run = self.core.program, self.core.runs(stage, place)
        for piece in self.cut.repeatables[place].reads:
            record = self.cut.pieces[piece]
            if stage in record.read_at or record.stays:
                continue
            later = needed.get(piece, self._after(stage, piece))
            if not is_choice(later):
                needed[piece] = later or run
                continue
            needed[piece] = now = program.variable(f"n{stage}_{piece}_{place}", whole=False)
            program.at_most([(1, later), (-1, now)], 0)
            program.at_most([(1, run), (-1, now)], 0)
            self._needed.append((now, later, run))

    def _after(self, stage: int, piece: int) -> Term:
        """Return 1 if the piece is alive after the repeatable runs of the stage, before its own operation ends."""
        return 0 if piece in self.cut.stages[stage].makes else self.core.alive(stage + 1, piece)

    def _state_inner(self, stage: int, place: int, needed: dict[int, Term]) -> None:
        repeatable = self.cut.repeatables[place]
        terms = [(repeatable.momentary_bytes, self.core.runs(stage, place))]
        for piece, record in enumerate(self.cut.pieces):
            if record.maker >= place and is_choice(self.core.made(stage, piece)):
                terms.append((record.size_bytes, self.core.alive(stage, piece)))
            elif stage in record.read_at:
                terms.append((record.size_bytes, 1))
            else:
                terms.append((record.size_bytes, needed.get(piece, self._after(stage, piece))))
        # the `needed` variables are not integers, so the row may not be rounded
        self.peak.state([*terms, *self._given()], self.cut.stages[stage].base_bytes, rounded=False)

    def complete(self, values: dict[str, float]) -> dict[str, float]:
        """Add the values of the `needed` variables to those of `StageProgram.values_of`."""
        for variable, *terms in self._needed:
            values[variable.name] = max(value_of(term, values) for term in terms)
        return values


def unit_of(cut: Stages) -> float:
    """Return the unit of stated bytes: their greatest common divisor, larger if numbers would get too large."""
    sizes = [piece.size_bytes for piece in cut.pieces] + [repeatable.momentary_bytes for repeatable in cut.repeatables]
    sizes += [size for stage in cut.stages for size in (stage.fixed_bytes, stage.base_bytes)]
    return max(gcd(*sizes), max((abs(size) for size in sizes), default=0) / _WHOLE, 1)


def divisors_of(cut: Stages) -> tuple[int, ...]:
    """Return the sizes that account for the most bytes; of nearly equal sizes the smallest."""
    sizes = sorted((piece.size_bytes for piece in cut.pieces if piece.size_bytes), reverse=True)
    groups: list[list[int]] = []
    for size in sizes:
        if groups and size > 0.97 * groups[-1][-1]:
            groups[-1].append(size)
        else:
            groups.append([size])
    return tuple(group[-1] for group in sorted(groups, key=lambda group: -sum(group))[:_DIVISORS])
