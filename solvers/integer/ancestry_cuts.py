"""Rows that say that nothing comes of nothing: what is there now was there before, or else what it is made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .answer import Answer, Status, value_of
from .stage_program import StageProgram

_ROUNDS = 20
_ROWS_PER_ROUND = 300
_LEAST_VIOLATION = 0.05
_PATIENCE, _LEAST_GAIN = 3, 0.002  # end when so many rounds have raised the bound by less than this share


@dataclass(frozen=True, eq=False)
class _Point:
    """A solution of the relaxation. alive[s, v]; ran[s, k]: its runs in all stages before s."""

    alive: np.ndarray
    ran: np.ndarray


class Ancestry:
    """Finds the rows that a solution of the relaxation breaks.

    Take stages s <= t and a piece v with maker k. If v is there in t (alive when t begins, or made in t), it was
    alive when s began, or k has run since. If k has run since, then what it reads was there in some stage of s..t,
    for which the same holds. So with f(v) = alive(s, v) + the least of [runs of k in s..t] and [f(u) of any u that k
    reads],

        alive(t, v) + runs(t, k)  <=  f(v),

    a path from v back through what it is made from, which ends with the runs of one operation. (A piece that an
    operation that runs once makes after s is no way out; one that is there from the beginning ends with itself.)

    Without these rows the relaxation makes a tenth of v from a tenth of u in each of ten stages, keeping that tenth
    of u, and ends with all of v: its value is far too small and there is little to be learned from it. The rows hold
    for every limit on bytes; those found once serve for all limits.
    """

    def __init__(self, core: StageProgram) -> None:
        self.core, self.cut = core, core.cut
        pieces = self.cut.pieces
        self.by_maker = sorted(range(len(pieces)), key=lambda piece: pieces[piece].maker)
        stages = len(self.cut.stages)
        late = np.arange(stages)[:, None] >= np.arange(stages)[None, :]
        self.before = np.where(late, np.inf, 0.0)  # [s, t]: not for s >= t

    def strengthen(self) -> Answer | None:
        """Solve the relaxation and add rows that it breaks until there is none, or little to gain; the last answer
        (its bound holds for the program), None where there is no solver for relaxations."""
        answer = self.core.program.relaxed()
        bounds: list[float] = []
        for _ in range(_ROUNDS):
            if answer is None or not answer.solved or not self._add(answer):
                break
            again = self.core.program.relaxed()
            if again is None or again.status is Status.UNKNOWN:
                break
            answer = again
            bounds.append(answer.bound)
            if len(bounds) > _PATIENCE and bounds[-1] - bounds[-1 - _PATIENCE] < _LEAST_GAIN * abs(bounds[-1]):
                break
        return answer

    def _add(self, answer: Answer) -> bool:
        """Add the rows that the answer breaks most, one for each stage t and piece at most."""
        if not self.cut.repeatables:
            return False  # nothing comes of anything
        point = self._point(answer)
        reached, step = self._least(point)
        maker = np.array([piece.maker for piece in self.cut.pieces], dtype=np.int64)
        ran = np.diff(point.ran, axis=0)
        there = point.alive[:-1] + np.where(maker >= 0, ran[:, maker], 0.0)  # [t, v]
        excess = there.T[:, None, :] - reached - self.before  # [v, s, t]
        for piece, told in enumerate(self.cut.pieces):
            if told.maker < 0 or told.stays:
                excess[piece] = -1.0
        start = excess.argmax(axis=1)  # [v, t]
        most = np.take_along_axis(excess, start[:, None, :], axis=1)[:, 0, :]
        worst = np.argsort(-most, axis=None, kind="stable")[:_ROWS_PER_ROUND]
        added = False
        for piece, stage in zip(*np.unravel_index(worst, most.shape), strict=True):
            if most[piece, stage] > _LEAST_VIOLATION:
                self._state(int(start[piece, stage]), int(stage), int(piece), step)
                added = True
        return added

    def _point(self, answer: Answer) -> _Point:
        core, values = self.core, answer.values
        stages, pieces, places = (len(x) for x in (self.cut.stages, self.cut.pieces, self.cut.repeatables))
        alive = [[value_of(core.alive(s, v), values) for v in range(pieces)] for s in range(stages + 1)]
        runs = [[value_of(core.runs(s, k), values) for k in range(places)] for s in range(stages)]
        ran = np.array(runs).reshape(stages, places).cumsum(axis=0)
        return _Point(np.array(alive).reshape(stages + 1, pieces), np.vstack([np.zeros((1, places)), ran]))

    def _least(self, point: _Point) -> tuple[np.ndarray, np.ndarray]:
        """(f[v, s, t], the piece to go on with from there: -1 to end with the runs of its maker)."""
        stages = len(self.cut.stages)
        reached = np.empty((len(self.cut.pieces), stages, stages))
        step = np.full(reached.shape, -1, dtype=np.int64)
        for piece in self.by_maker:
            told = self.cut.pieces[piece]
            if told.maker < 0:
                least = np.zeros((stages, stages))
            else:
                ran = point.ran[:, told.maker]
                least = ran[None, 1:] - ran[:-1, None]  # [s, t]: runs in s..t
                for read in self.cut.repeatables[told.maker].reads:
                    better = reached[read] < least - 1e-9
                    least = np.where(better, reached[read], least)
                    step[piece][better] = read
            reached[piece] = point.alive[:-1, piece][:, None] + least
            if told.born >= 0:
                reached[piece, : told.born + 1] = np.inf
        return reached, step

    def _state(self, start: int, stage: int, piece: int, step: np.ndarray) -> None:
        """State the row of a path."""
        core = self.core
        terms = [(1.0, core.alive(stage, piece)), (1.0, core.made(stage, piece)), (-1.0, core.alive(start, piece))]
        while (following := int(step[piece, start, stage])) >= 0:
            piece = following
            terms.append((-1.0, core.alive(start, piece)))
        maker = self.cut.pieces[piece].maker
        if maker >= 0:
            terms += [(-1.0, core.runs(between, maker)) for between in range(start, stage + 1)]
        core.program.at_most(terms, 0)
