"""States the integer program over stages, and reads a solution as what runs in which stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .answer import Answer, Term, is_choice
from .program import IntegerProgram
from .stages import Stages, Start


class StageProgram:
    """The program over stages: which pieces are alive when a stage begins, what runs again in it.

    Without limits on bytes, which `Moments` states. Seconds are stated in `seconds_unit`.
    """

    def __init__(self, cut: Stages) -> None:
        self.cut = cut
        self.program = IntegerProgram("stages")
        self.seconds_unit = max((one.seconds for one in cut.repeatables), default=0.0) / 100 or 1.0
        self.frugal = False  # whether it is stated that nothing runs or is kept in vain
        self._alive: dict[tuple[int, int], Term] = {}
        self._runs: dict[tuple[int, int], Term] = {}
        for stage in range(len(cut.stages)):
            self._state_reads(stage)
            self._state_runs(stage)
            self._state_lives(stage)

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
            may = one.first <= stage <= one.last
            self._runs[key] = self.program.variable(f"r{stage}_{place}") if may else 0
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
                    there = [(-1, self.alive(stage, piece)), (-1, self.made(stage, piece))]
                    self.program.at_most([(1, self.runs(stage, place)), *there], 0)

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
            elif is_choice(made):
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

    def values_of(self, chosen: Sequence[Iterable[int]]) -> dict[str, float]:
        """The values of a solution that runs these operations (by their places) in each stage."""
        cut = self.cut
        runs = [set(places) for places in chosen]
        kept: dict[tuple[int, int], bool] = {}
        for stage in range(len(cut.stages), -1, -1):
            here = runs[stage] if stage < len(cut.stages) else set[int]()
            read = {piece for place in here for piece in cut.repeatables[place].reads}
            for number, piece in enumerate(cut.pieces):
                later = stage == piece.due or kept.get((stage + 1, number), False)
                born = piece.born == stage and stage not in piece.read_at
                needed = stage in piece.read_at or number in read or later
                kept[stage, number] = needed and not born and piece.maker not in here
        values = {}
        for number, piece in enumerate(cut.pieces):
            there = kept[0, number] and piece.start is not Start.ABSENT
            for stage in range(len(cut.stages) + 1):
                if is_choice(term := self.alive(stage, number)):
                    values[term.name] = float(there if piece.stays else kept[stage, number])
                there = there or (stage < len(cut.stages) and piece.maker in runs[stage])
        for (stage, place), term in self._runs.items():
            if is_choice(term):
                values[term.name] = float(place in runs[stage])
        return values

    def ran(self, answer: Answer) -> list[list[int]]:
        """For each stage the repeatable operations (their places) that run in it, in trace order."""
        chosen: list[list[int]] = [[] for _ in self.cut.stages]
        for (stage, place), term in sorted(self._runs.items()):
            if is_choice(term) and answer.values[term.name] > 0.5:
                chosen[stage].append(place)
        return chosen
