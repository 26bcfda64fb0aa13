"""Rows that require an ancestry: a piece that is there now was there before, or the pieces it is made from were."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .answer import Answer, Status, value_of
from .stage_program import StageProgram

_ROUNDS = 20
_ROWS_PER_ROUND = 300
_LEAST_VIOLATION = 0.05
_PATIENCE, _LEAST_GAIN = 3, 0.002  # end when this many rounds have raised the bound by less than this share


@dataclass(frozen=True, eq=False)
class _Point:
    """A solution of the relaxation: alive[s, v], and ran[s, k], the runs of k in all stages before s."""

    alive: np.ndarray
    ran: np.ndarray


class Ancestry:
    """Finds the rows that a solution of the relaxation violates.

    Take stages s <= t and a piece v with maker k. If v is there in t (alive when t begins, or made in t), it was
    alive when s began, or k has run since. If k has run since, the pieces it reads were there in some stage of s..t,
    and the same holds for them. With f(v) = alive(s, v) + the least of [runs of k in s..t] and [f(u) of any u that k
    reads], this gives

        alive(t, v) + runs(t, k)  <=  f(v),

    a path from v back through the pieces it is made from, which ends with the runs of one operation. A path cannot end
    at a piece that an operation that runs once makes after s; a piece that is there from the beginning ends it.

    Without these rows the relaxation makes a tenth of v from a tenth of u in each of ten stages, keeping that tenth
    of u, and ends with all of v. Its bound is then far too low to be of use. The rows hold for every limit on bytes,
    so rows added for one limit serve for all.
    """

    def __init__(self, core: StageProgram) -> None:
        self.core, self.cut = core, core.cut
        pieces = self.cut.pieces
        self.by_maker = sorted(range(len(pieces)), key=lambda piece: pieces[piece].maker)
        stages = len(self.cut.stages)
        late = np.arange(stages)[:, None] >= np.arange(stages)[None, :]
        self.before = np.where(late, np.inf, 0.0)  # [s, t]: not for s >= t

    def strengthen(self) -> Answer | None:
        """Solve the relaxation and add rows that it violates until none is left or little is gained.

        Return the last answer, whose bound holds for the program; None without a solver for relaxations.
        """
        answer = self.core.program.relaxed()
        bounds: list[float] = []
        for _ in range(_ROUNDS):
            if answer is None or not answer.solved or not self._add(answer):
                break
            next_answer = self.core.program.relaxed()
            if next_answer is None or next_answer.status is Status.UNKNOWN:
                break
            answer = next_answer
            bounds.append(answer.bound)
            if len(bounds) > _PATIENCE and bounds[-1] - bounds[-1 - _PATIENCE] < _LEAST_GAIN * abs(bounds[-1]):
                break
        return answer

    def _add(self, answer: Answer) -> bool:
        """Add the rows that the answer violates most, at most one for each stage t and piece; return whether any."""
        if not self.cut.repeatables:
            return False  # no piece is made from another
        point = self._point(answer)
        reached, step = self._least(point)
        maker = np.array([piece.maker for piece in self.cut.pieces], dtype=np.int64)
        ran = np.diff(point.ran, axis=0)
        there = point.alive[:-1] + np.where(maker >= 0, ran[:, maker], 0.0)  # [t, v]
        excess = there.T[:, None, :] - reached - self.before  # [v, s, t]
        for piece, record in enumerate(self.cut.pieces):
            if record.maker < 0 or record.stays:
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
        """Return (f[v, s, t], the next piece of the path: -1 to end with the runs of the maker)."""
        stages = len(self.cut.stages)
        reached = np.empty((len(self.cut.pieces), stages, stages))
        step = np.full(reached.shape, -1, dtype=np.int64)
        for piece in self.by_maker:
            record = self.cut.pieces[piece]
            if record.maker < 0:
                least = np.zeros((stages, stages))
            else:
                ran = point.ran[:, record.maker]
                least = ran[None, 1:] - ran[:-1, None]  # [s, t]: runs in s..t
                for read in self.cut.repeatables[record.maker].reads:
                    better = reached[read] < least - 1e-9
                    least = np.where(better, reached[read], least)
                    step[piece][better] = read
            reached[piece] = point.alive[:-1, piece][:, None] + least
            if record.born >= 0:
                reached[piece, : record.born + 1] = np.inf
        return reached, step

    def _state(self, start: int, stage: int, piece: int, step: np.ndarray) -> None:
        """Add the row of a path."""
        core = self.core
        terms = [(1.0, core.alive(stage, piece)), (1.0, core.made(stage, piece)), (-1.0, core.alive(start, piece))]
        while (following := int(step[piece, start, stage])) >= 0:
            piece = following
            terms.append((-1.0, core.alive(start, piece)))
        maker = self.cut.pieces[piece].maker
        if maker >= 0:
            terms += [(-1.0, core.runs(between, maker)) for between in range(start, stage + 1)]
        core.program.at_most(terms, 0)
