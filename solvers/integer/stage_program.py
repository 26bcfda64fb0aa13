"""The integer program over stages, and the runs of each stage in a solution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .answer import Answer, Term, is_choice
from .program import IntegerProgram
from .stages import Stages, Start


class StageProgram:
    """The program over stages: the pieces alive when a stage begins, and the repeatable operations that run in it.

    It has no limits on bytes; `Moments` states those. Seconds are in `seconds_unit`.
    """

    def __init__(self, cut: Stages) -> None:
        self.cut = cut
        self.program = IntegerProgram("stages")
        self.seconds_unit = max((repeatable.seconds for repeatable in cut.repeatables), default=0.0) / 100 or 1.0
        self.frugal = False  # whether rows forbid useless runs and useless pieces
        self._alive: dict[tuple[int, int], Term] = {}
        self._runs: dict[tuple[int, int], Term] = {}
        for stage in range(len(cut.stages)):
            self._state_reads(stage)
            self._state_runs(stage)
            self._state_lives(stage)

    def costs(self) -> list[tuple[float, Term]]:
        """Return the time of all repeatable runs, in `seconds_unit`."""
        return [
            (repeatable.seconds / self.seconds_unit, self.runs(stage, place))
            for place, repeatable in enumerate(self.cut.repeatables)
            for stage in range(repeatable.first, repeatable.last + 1)
        ]

    def alive(self, stage: int, piece: int) -> Term:
        """Return the term that is 1 if the piece is alive when the stage begins; a number where there is no choice."""
        key = stage, piece
        if key not in self._alive:
            self._alive[key] = self._new_alive(stage, piece)
        return self._alive[key]

    def runs(self, stage: int, place: int) -> Term:
        """Return the term that is 1 if the repeatable operation runs in the stage."""
        key = stage, place
        if key not in self._runs:
            repeatable = self.cut.repeatables[place]
            may = repeatable.first <= stage <= repeatable.last
            self._runs[key] = self.program.variable(f"r{stage}_{place}") if may else 0
        return self._runs[key]

    def made(self, stage: int, piece: int) -> Term:
        """Return the term that is 1 if the piece's maker runs in the stage."""
        maker = self.cut.pieces[piece].maker
        return self.runs(stage, maker) if maker >= 0 else 0

    def _new_alive(self, stage: int, piece: int) -> Term:
        first, last = self.cut.alive[piece]
        record = self.cut.pieces[piece]
        if not first <= stage <= last:
            return 0
        if stage and record.stays and record.start is Start.KEPT:
            return self.alive(0, piece)
        if 0 <= record.due <= stage and (record.stays or stage == record.due):
            return 1
        if record.maker < 0 and stage <= max((*record.read_at, record.due), default=-1):
            return 1  # it cannot be recomputed
        return self.program.variable(f"a{stage}_{piece}")

    def _state_reads(self, stage: int) -> None:
        """State that the pieces read by the stage's own operation are alive or made in the stage."""
        for piece in self.cut.stages[stage].reads:
            self.program.at_most([(-1, self.alive(stage, piece)), (-1, self.made(stage, piece))], -1)

    def _state_runs(self, stage: int) -> None:
        """State that the pieces read by runs of the stage are alive or made in the stage."""
        for place, repeatable in enumerate(self.cut.repeatables):
            if repeatable.first <= stage <= repeatable.last:
                for piece in repeatable.reads:
                    there = [(-1, self.alive(stage, piece)), (-1, self.made(stage, piece))]
                    self.program.at_most([(1, self.runs(stage, place)), *there], 0)

    def _state_lives(self, stage: int) -> None:
        """State which pieces are alive from stage to stage.

        A piece alive afterwards was alive before or is made in the stage. No piece is carried into a stage that makes
        it: its readers there run after its maker, so it may be dropped before. Held pieces stay. A given piece is
        alive only as long as it is needed.
        """
        made_here = self.cut.stages[stage].makes
        for piece, record in enumerate(self.cut.pieces):
            before, made, after = self.alive(stage, piece), self.made(stage, piece), self.alive(stage + 1, piece)
            if piece not in made_here:
                self.program.at_most([(1, after), (-1, before), (-1, made)], 0)
            if record.stays:
                self.program.at_most([(1, before), (-1, after)], 0)
                self.program.at_most([(1, made), (-1, after)], 0)
            elif is_choice(made):
                self.program.at_most([(1, before), (1, made)], 1)
            if record.start is Start.GIVEN:
                self._state_need(stage, piece)

    def _state_need(self, stage: int, piece: int) -> None:
        """State that a piece is alive when a stage begins only if it is read in it or alive afterwards."""
        record = self.cut.pieces[piece]
        if stage not in record.read_at:
            uses = [self.alive(stage + 1, piece), *(self.runs(stage, reader) for reader in record.readers)]
            self.program.at_most([(1, self.alive(stage, piece)), *((-1, use) for use in uses)], 0)

    def state_frugality(self) -> None:
        """State that no piece is kept and no operation runs without use.

        Without this a solution may count a given piece as dying with a reader whose results are not used.
        """
        self.frugal = True
        for stage in range(len(self.cut.stages)):
            for piece in range(len(self.cut.pieces)):
                self._state_need(stage, piece)
            for place, repeatable in enumerate(self.cut.repeatables):
                if any(stage in self.cut.pieces[piece].read_at for piece in repeatable.makes):
                    continue
                uses = [self.alive(stage + 1, piece) for piece in repeatable.makes]
                readers = {reader for piece in repeatable.makes for reader in self.cut.pieces[piece].readers}
                uses += [self.runs(stage, reader) for reader in sorted(readers)]
                self.program.at_most([(1, self.runs(stage, place)), *((-1, use) for use in uses)], 0)

    def values_of(self, chosen: Sequence[Iterable[int]]) -> dict[str, float]:
        """Return the values of a solution that runs these operations (by their places) in each stage."""
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
        """Return for each stage the repeatable operations (their places) that run in it, in trace order."""
        chosen: list[list[int]] = [[] for _ in self.cut.stages]
        for (stage, place), term in sorted(self._runs.items()):
            if is_choice(term) and answer.values[term.name] > 0.5:
                chosen[stage].append(place)
        return chosen
