"""Lower the highest moment by what costs the least time per byte, block class by block class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .block_options import Option, options_of
from .blocks import forward_values, shared_values
from .envelope import cheapest_under
from .liveness import Candidate, Forecast, RunOrder, forecast, schedule_of
from .problem import Problem
from .rematerialize import run_order
from .schedule import Schedule


@dataclass(frozen=True)
class Greedy:
    """From everything kept downwards: which blocks of which class should run in which other way, so that the
    highest moment falls at the least time per byte?

    The ways of a block (`options_of`) hold the best trades of bytes for time, and are found once per class. A
    move puts a prefix of a class's blocks, or all of them, on another option; it is made block by block, each a
    rung of the ladder. So at any budget few distinct variants of a block occur: those of whole moves, and one
    move half done. The interior of the block whose backward comes first costs no peak and stays, unless a later
    move has to lower just that.

    Prices are estimates (what a block keeps and how high it rises add up); every rung is a run order rated by
    the same forecast as all others, and a move whose peak does not fall is taken back.

    Guarantee: none; compare `lower_bound_seconds`. Cost: options per class, then one forecast per rung
    (`rungs_per_move` at most).
    """

    rungs_per_move: int = 16
    most_moves: int = 80
    name: str = "greedy"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """The ladder, from the highest peak down."""
        ladder = _Ladder(problem)
        yield Candidate(ladder.told(), ladder.order)
        for _ in range(self.most_moves):
            move = ladder.best_move()
            if move is None:
                break
            for order in ladder.make(move, self.rungs_per_move):
                yield Candidate(ladder.told(), order)

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest of the ladder that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)


@dataclass(frozen=True)
class _Move:
    """Blocks of one class (in the order in which they change) and the option they change to."""

    blocks: tuple[int, ...]
    option: int


@dataclass(frozen=True, eq=False)
class _Class:
    """The options of a class of blocks, as arrays too."""

    blocks: np.ndarray
    options: tuple[Option, ...]
    kept_bytes: np.ndarray
    rise_bytes: np.ndarray
    seconds: np.ndarray

    @staticmethod
    def of(problem: Problem, block_class: int) -> _Class:
        """The options of a class, found on the block in its middle."""
        members = [b for b, other in enumerate(problem.block_classes) if other == block_class]
        options = options_of(problem, members[len(members) // 2])
        columns = zip(*((o.kept_bytes, o.rise_bytes, o.seconds) for o in options), strict=True)
        return _Class(np.array(members), options, *(np.array(column) for column in columns))


class _Ladder:
    """A state (an option for every block) and the way down from it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.classes = {c: _Class.of(problem, c) for c in dict.fromkeys(problem.block_classes)}
        fastest = {c: int(np.lexsort((one.rise_bytes, one.seconds))[0]) for c, one in self.classes.items()}
        self.chosen = np.array([fastest[c] for c in problem.block_classes])
        self.useless: set[tuple[int, ...]] = set()
        self.order: RunOrder = ()
        self.seen = self._look()

    def told(self) -> str:
        """How many blocks of each class run in which way."""
        parts = []
        for number, one in self.classes.items():
            counts = np.bincount(self.chosen[one.blocks], minlength=len(one.options))
            ways = ", ".join(f"{count}×{option}" for option, count in enumerate(counts) if count)
            parts.append(f"class {number}: {ways}")
        return "; ".join(parts)

    def best_move(self) -> _Move | None:
        """The move that lowers the highest moment at the least time per byte; None if none does."""
        best, best_score = None, (np.inf, 0.0)
        for number, one in self.classes.items():
            for blocks in self._subsets(one):
                fall, seconds = self._estimate(one, blocks)
                for option in np.flatnonzero(fall > 1e-4 * self.seen.peak_bytes):
                    move = (number, int(option), *blocks.tolist())
                    score = (max(seconds[option], 0.0) / fall[option], -fall[option])
                    if score < best_score and move not in self.useless:
                        best, best_score = move, score
        if best is None:
            return None
        return _Move(best[2:], best[1])

    def make(self, move: _Move, most_rungs: int) -> Iterator[RunOrder]:
        """Change the move's blocks a few at a time; yields the order of each rung. Taken back if it was useless."""
        before, seen_before = self.chosen.copy(), self.seen
        number = self.problem.block_classes[move.blocks[0]]
        one, blocks = self.classes[number], np.array(move.blocks)
        if one.kept_bytes[move.option] >= one.kept_bytes[self.chosen[blocks]].min():
            blocks = blocks[::-1]  # what lowers only the rise helps most where most is alive already
        steps = min(len(blocks), most_rungs)
        for step in range(1, steps + 1):
            self.chosen[blocks[: len(blocks) * step // steps]] = move.option
            self.seen = self._look()
            yield self.order
        if self.seen.peak_bytes >= seen_before.peak_bytes:
            self.chosen, self.seen = before, seen_before
            self.useless.add((number, move.option, *move.blocks))

    def _subsets(self, one: _Class) -> Iterator[np.ndarray]:
        """Blocks of a class that a move may change: those before the highest moment, with its own, all."""
        peak_segment = int(self.seen.segment_peaks.argmax())
        block_count = len(self.problem.block_classes)
        at = min(peak_segment, 2 * block_count - 1 - peak_segment)
        sizes = dict.fromkeys((int((one.blocks < at).sum()), int((one.blocks <= at).sum()), len(one.blocks)))
        for size in sizes:
            if size:
                yield one.blocks[:size]

    def _estimate(self, one: _Class, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bytes by which the highest moment falls, seconds more), for these blocks on each option."""
        block_count = len(self.problem.block_classes)
        kept = np.zeros((len(one.options), block_count))
        rise = np.zeros((len(one.options), block_count))
        chosen = self.chosen[blocks]
        kept[:, blocks] = one.kept_bytes[:, None] - one.kept_bytes[chosen]
        rise[:, blocks] = one.rise_bytes[:, None] - one.rise_bytes[chosen]
        base = np.cumsum(kept, axis=1)
        forward = self.seen.segment_peaks[:block_count] + base - kept
        backward = self.seen.segment_peaks[block_count:][::-1] + base + rise
        highest = np.maximum(forward.max(axis=1), backward.max(axis=1))
        seconds = (one.seconds[:, None] - one.seconds[chosen]).sum(axis=1)
        return self.seen.segment_peaks.max() - highest, seconds

    def _look(self) -> Forecast:
        shared, problem = shared_values(self.problem), self.problem
        lifetimes = bytearray(len(problem.values))
        for block, values in enumerate(forward_values(problem)):
            option = self.classes[problem.block_classes[block]].options[self.chosen[block]]
            for value, life in zip(values, option.lifetimes, strict=True):
                lifetimes[value] = 0 if value in shared else life
        self.order = run_order(problem, lifetimes)
        return forecast(problem, self.order)
