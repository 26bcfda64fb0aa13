"""States the integer program over stages in PuLP, and reads a solution as what runs in which stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import gcd

import pulp

from .ilp_stages import Stages, Start
from .integer_program import Answer, IntegerProgram, Term

_WHOLE = 10**5  # coefficients that are whole numbers up to this stay so


class StageProgram:
    """The program over stages: which pieces are alive when a stage begins, what runs again in it.

    peak: a variable for the limit on every moment; set its bounds with `limit`. Bytes and seconds are stated in
    `bytes_unit` and `seconds_unit`, so that coefficients are of middling size.
    """

    def __init__(self, cut: Stages) -> None:
        self.cut = cut
        self.program = IntegerProgram("stages")
        self.bytes_unit = _unit(cut)
        self.seconds_unit = max((one.seconds for one in cut.repeatables), default=0.0) / 100 or 1.0
        self.peak = self.program.variable("peak", whole=False, most=None)
        self.refined: set[int] = set()  # stages whose inner moments are stated
        self.frugal = False  # whether it is stated that nothing runs or is kept in vain
        self._alive: dict[tuple[int, int], Term] = {}
        self._runs: dict[tuple[int, int], Term] = {}
        self._needed: list[tuple[pulp.LpVariable, Term, Term]] = []  # each is the larger one of two
        for stage in range(len(cut.stages)):
            self._state_reads(stage)
            self._state_runs(stage)
            self._state_lives(stage)
            self._state_peak(stage)

    def costs(self) -> list[tuple[float, Term]]:
        """The time of all that runs again, in `seconds_unit`."""
        return [
            (one.seconds / self.seconds_unit, self.runs(stage, place))
            for place, one in enumerate(self.cut.repeatables)
            for stage in range(one.first, one.last + 1)
        ]

    def alive(self, stage: int, piece: int) -> Term:
        """1 if the piece is alive when the stage begins; a number where that is no choice."""
        key = stage, piece
        if key not in self._alive:
            self._alive[key] = self._new_alive(stage, piece)
        return self._alive[key]

    def runs(self, stage: int, place: int) -> Term:
        """1 if the repeatable operation runs in the stage."""
        key = stage, place
        if key not in self._runs:
            one = self.cut.repeatables[place]
            self._runs[key] = self.program.variable(f"r{stage}_{place}") if one.first <= stage <= one.last else 0
        return self._runs[key]

    def made(self, stage: int, piece: int) -> Term:
        """1 if the piece's maker runs in the stage."""
        maker = self.cut.pieces[piece].maker
        return self.runs(stage, maker) if maker >= 0 else 0

    def _new_alive(self, stage: int, piece: int) -> Term:
        first, last = self.cut.alive[piece]
        told = self.cut.pieces[piece]
        if not first <= stage <= last:
            return 0
        if stage and told.stays and told.start is Start.KEPT:
            return self.alive(0, piece)
        if 0 <= told.due <= stage and (told.stays or stage == told.due):
            return 1
        if told.maker < 0 and stage <= max((*told.read_at, told.due), default=-1):
            return 1  # it cannot be made again
        return self.program.variable(f"a{stage}_{piece}")

    def _state_reads(self, stage: int) -> None:
        """What the stage's own operation reads is alive or made in the stage."""
        for piece in self.cut.stages[stage].reads:
            self.program.at_most([(-1, self.alive(stage, piece)), (-1, self.made(stage, piece))], -1)

    def _state_runs(self, stage: int) -> None:
        """What runs in the stage finds what it reads alive, or made in the stage."""
        for place, one in enumerate(self.cut.repeatables):
            if one.first <= stage <= one.last:
                for piece in one.reads:
                    needs = [
                        (1, self.runs(stage, place)),
                        (-1, self.alive(stage, piece)),
                        (-1, self.made(stage, piece)),
                    ]
                    self.program.at_most(needs, 0)

    def _state_lives(self, stage: int) -> None:
        """A piece that is alive afterwards was alive before or is made in the stage; no piece is carried into a stage
        that makes it (all that reads it there runs after its maker: it may be dropped before); held ones stay; a
        given piece is alive only as long as it is needed."""
        made_here = self.cut.stages[stage].makes
        for piece, told in enumerate(self.cut.pieces):
            before, made, after = self.alive(stage, piece), self.made(stage, piece), self.alive(stage + 1, piece)
            if piece not in made_here:
                self.program.at_most([(1, after), (-1, before), (-1, made)], 0)
            if told.stays:
                self.program.at_most([(1, before), (-1, after)], 0)
                self.program.at_most([(1, made), (-1, after)], 0)
            elif _is_choice(made):
                self.program.at_most([(1, before), (1, made)], 1)
            if told.start is Start.GIVEN:
                self._state_need(stage, piece)

    def _state_need(self, stage: int, piece: int) -> None:
        """A piece is alive when a stage begins only if it is read in it or alive afterwards."""
        told = self.cut.pieces[piece]
        if stage not in told.read_at:
            uses = [self.alive(stage + 1, piece), *(self.runs(stage, reader) for reader in told.readers)]
            self.program.at_most([(1, self.alive(stage, piece)), *((-1, use) for use in uses)], 0)

    def state_frugality(self) -> None:
        """State that nothing is kept, and nothing runs, that is of no use: without this a solution may count a given
        piece as dying with a reader that runs in vain."""
        self.frugal = True
        for stage in range(len(self.cut.stages)):
            for piece in range(len(self.cut.pieces)):
                self._state_need(stage, piece)
            for place, one in enumerate(self.cut.repeatables):
                if any(stage in self.cut.pieces[piece].read_at for piece in one.makes):
                    continue
                uses = [self.alive(stage + 1, piece) for piece in one.makes]
                readers = {reader for piece in one.makes for reader in self.cut.pieces[piece].readers}
                uses += [self.runs(stage, reader) for reader in sorted(readers)]
                self.program.at_most([(1, self.runs(stage, place)), *((-1, use) for use in uses)], 0)

    def _state_peak(self, stage: int) -> None:
        """The stage's own operation runs: alive are what it reads and what is alive afterwards."""
        own = self.cut.stages[stage]
        terms: list[tuple[float, Term]] = []
        for piece, told in enumerate(self.cut.pieces):
            if piece in own.reads:
                terms.append((told.size_bytes, 1))
            elif piece not in own.makes or told.value < 0:
                terms.append((told.size_bytes, self.alive(stage + 1, piece)))
        self._state_moment(terms, own.fixed_bytes)

    def _state_moment(self, terms: list[tuple[float, Term]], fixed_bytes: int) -> None:
        """The pieces alive and what is alive besides are within the peak."""
        for piece, told in enumerate(self.cut.pieces):
            if told.start is Start.GIVEN:
                terms.append((-told.size_bytes, self.alive(0, piece)))
        scaled = [(size_bytes / self.bytes_unit, term) for size_bytes, term in terms]
        self.program.at_most([*scaled, (-1, self.peak)], -fixed_bytes / self.bytes_unit)

    def refine(self, stage: int) -> None:
        """State the moments in which something runs again within a stage.

        While operation k runs, a piece that is made in the stage, but later (or by k), is alive if it was when the
        stage began. Any other is alive if it is read in the stage by k or later, or alive afterwards.
        If k does not run, the row says nothing new: what is alive then is alive when the next operation runs.
        """
        self.refined.add(stage)
        needed: dict[tuple[int, int], Term] = {}
        for place in range(len(self.cut.repeatables) - 1, -1, -1):
            if _is_choice(self.runs(stage, place)):
                self._state_needed(stage, place, needed)
                self._state_inner(stage, place, needed)

    def _state_needed(self, stage: int, place: int, needed: dict[tuple[int, int], Term]) -> None:
        """needed[v]: 1 if piece v is read in the stage by this operation or later, or is alive afterwards."""
        for piece in self.cut.repeatables[place].reads:
            told, run = self.cut.pieces[piece], self.runs(stage, place)
            if stage in told.read_at or told.stays:
                continue
            later = needed.get((stage, piece), self._after(stage, piece))
            if not _is_choice(later):
                needed[stage, piece] = later or run
                continue
            now = self.program.variable(f"n{stage}_{piece}_{place}", whole=False)
            self.program.at_most([(1, later), (-1, now)], 0)
            self.program.at_most([(1, run), (-1, now)], 0)
            needed[stage, piece] = now
            self._needed.append((now, later, run))

    def _after(self, stage: int, piece: int) -> Term:
        """1 if the piece is alive after what runs again in the stage, before its own operation's end."""
        return 0 if piece in self.cut.stages[stage].makes else self.alive(stage + 1, piece)

    def _state_inner(self, stage: int, place: int, needed: Mapping[tuple[int, int], Term]) -> None:
        one = self.cut.repeatables[place]
        terms: list[tuple[float, Term]] = [(one.momentary_bytes, self.runs(stage, place))]
        for piece, told in enumerate(self.cut.pieces):
            if told.maker >= place and _is_choice(self.made(stage, piece)):
                terms.append((told.size_bytes, self.alive(stage, piece)))
            elif stage in told.read_at:
                terms.append((told.size_bytes, 1))
            else:
                terms.append((told.size_bytes, needed.get((stage, piece), self._after(stage, piece))))
        self._state_moment(terms, self.cut.stages[stage].base_bytes)

    def limit(self, variable: pulp.LpVariable, most_bytes: float) -> None:
        """Set what a variable in bytes is at most."""
        variable.lowBound = variable.upBound = max(most_bytes / self.bytes_unit, 0.0)

    def values_of(self, chosen: Sequence[Iterable[int]]) -> dict[str, float]:
        """The values of a solution that runs these operations (by their places) in each stage."""
        cut = self.cut
        values = {self.peak.name: self.peak.upBound or 0.0}
        told: dict[tuple[int, int], bool] = {}
        for stage in range(len(cut.stages), -1, -1):
            runs = set(chosen[stage]) if stage < len(cut.stages) else set()
            read = {piece for place in runs for piece in cut.repeatables[place].reads}
            for number, piece in enumerate(cut.pieces):
                needed = stage in piece.read_at or number in read or told.get((stage + 1, number), stage == piece.due)
                made = piece.maker in runs and not piece.stays
                born = stage < len(cut.stages) and number in cut.stages[stage].makes and stage not in piece.read_at
                told[stage, number] = needed and not made and not born
        made_before = [piece.start is Start.KEPT and told[0, n] for n, piece in enumerate(cut.pieces)]
        for stage in range(len(cut.stages) + 1):
            for number, piece in enumerate(cut.pieces):
                term = self.alive(stage, number)
                here = made_before[number] if piece.stays else told[stage, number]
                if isinstance(term, pulp.LpVariable):
                    values[term.name] = float(here)
                if stage < len(cut.stages) and piece.maker >= 0 and piece.maker in chosen[stage]:
                    made_before[number] = True
        for (stage, place), term in self._runs.items():
            if isinstance(term, pulp.LpVariable):
                values[term.name] = float(place in chosen[stage])
        for variable, *terms in self._needed:
            values[variable.name] = max(values[t.name] if isinstance(t, pulp.LpVariable) else float(t) for t in terms)
        return values

    def ran(self, answer: Answer) -> list[list[int]]:
        """For each stage the repeatable operations (their places) that run in it, in trace order."""
        chosen: list[list[int]] = [[] for _ in self.cut.stages]
        for (stage, place), term in sorted(self._runs.items()):
            if isinstance(term, pulp.LpVariable) and answer.values[term.name] > 0.5:
                chosen[stage].append(place)
        return chosen


def _is_choice(term: Term) -> bool:
    return isinstance(term, pulp.LpVariable)


def _unit(cut: Stages) -> float:
    """The unit in which bytes are stated: their greatest common divisor, if numbers stay small enough with it."""
    sizes = [piece.size_bytes for piece in cut.pieces] + [one.momentary_bytes for one in cut.repeatables]
    sizes += [number for stage in cut.stages for number in (stage.fixed_bytes, stage.base_bytes)]
    common, largest = gcd(*sizes), max((abs(size) for size in sizes), default=0)
    return max(common, largest / _WHOLE, 1)
