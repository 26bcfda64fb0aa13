"""Lower the highest moment by what costs the least time per byte, block class by block class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .block_options import Option, options_of
from .blocks import alike, block_inputs, forward_values, repeated_blocks, shared_values
from .envelope import cheapest_under
from .infeasible import told_bytes
from .layers import in_blocks, in_layers
from .liveness import Candidate, Forecast, RunOrder, forecast, schedule_of
from .problem import Problem
from .rematerialize import Lifetime, run_order
from .schedule import Schedule


@dataclass(frozen=True)
class Greedy:
    """From everything kept downwards: which blocks of which class should run in which other way, so that the
    highest moment falls at the least time per byte?

    The ways of a block (`options_of`) hold the best trades of bytes for time, and are found once per class. A
    move puts a prefix of a class's blocks, or all of them, on another option; it is made block by block, each
    a rung of the ladder. So at any budget few distinct variants of a block occur: those of whole moves, and
    one move half done. The interior of the block whose backward comes first costs no peak and stays, unless a
    later move has to lower just that.

    Prices are estimates (what a block keeps and how high it rises add up); every rung is a run order rated by
    the same forecast as all others, and a move whose peak does not fall is taken back.

    Guarantee: none; compare `lower_bound_seconds`. Cost: `visits` operations looked at for the options of all
    classes, then one forecast per rung (`rungs_per_move` at most per move).
    """

    rungs_per_move: int = 16
    most_moves: int = 80
    visits: int = 4_000_000
    name: str = "greedy"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """The ladder, from the highest peak down."""
        ladder = _Ladder(in_layers(problem), self.rungs_per_move, self.visits)
        yield Candidate(ladder.told(), in_blocks(problem, ladder.order))
        for _ in range(self.most_moves):
            move = ladder.best_move()
            if move is None:
                break
            for order in ladder.make(move):
                yield Candidate(ladder.told(), in_blocks(problem, order))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest of the ladder that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)


@dataclass(frozen=True)
class _Move:
    """Blocks of one class and the option they change to; with no blocks, how many inputs are kept then."""

    blocks: tuple[int, ...]
    option: int
    inputs_kept: int = 0


@dataclass(frozen=True, eq=False)
class _Class:
    """The options of a class of blocks, as arrays too."""

    blocks: np.ndarray
    options: tuple[Option, ...]
    kept_bytes: np.ndarray
    rise_bytes: np.ndarray
    seconds: np.ndarray

    @staticmethod
    def of(problem: Problem, first: int, visits: int) -> _Class:
        """The options of the class of the block `first`, found on the block in its middle."""
        members = [b for b, other in enumerate(alike(problem)) if other == first]
        options = options_of(problem, members[len(members) // 2], visits)
        columns = zip(*((o.kept_bytes, o.rise_bytes, o.seconds) for o in options), strict=True)
        return _Class(np.array(members), options, *(np.array(column) for column in columns))


class _Ladder:
    """A state (an option for every block) and the way down from it."""

    def __init__(self, problem: Problem, rungs_per_move: int, visits: int) -> None:
        self.problem = problem
        self.rungs_per_move = rungs_per_move
        self.chain = tuple(range(1, repeated_blocks(problem)[-1] + 1))  # blocks whose inputs may be dropped
        self.inputs_kept = len(self.chain)
        self.alike = alike(problem)
        distinct = dict.fromkeys(self.alike)
        self.classes = {c: _Class.of(problem, c, visits // len(distinct)) for c in distinct}
        fastest = {c: int(np.lexsort((one.rise_bytes, one.seconds))[0]) for c, one in self.classes.items()}
        self.chosen = np.array([fastest[c] for c in self.alike])
        self.useless: set[tuple[int, ...]] = set()
        self.order: RunOrder = ()
        self.seen = self._look()

    def told(self) -> str:
        """How many layers of each class keep how much."""
        parts = []
        for one in self.classes.values():
            counts = np.bincount(self.chosen[one.blocks], minlength=len(one.options))
            ways = (f"{counts[i]} keep {told_bytes(one.kept_bytes[i])}" for i in np.flatnonzero(counts))
            if counts[0] < len(one.blocks):
                parts.append(f"of {len(one.blocks)} layers like {one.blocks[0]} {', '.join(ways)}")
        if self.inputs_kept < len(self.chain):
            parts.append(f"{self.inputs_kept} inputs of layers are kept")
        return "; ".join(parts) or "everything kept"

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
        fewer = self.inputs_kept - max(1, len(self.chain) // self.rungs_per_move)
        if fewer > 0 and (0, fewer) not in self.useless:
            seen = self._look(fewer)
            fall, more = self.seen.peak_bytes - seen.peak_bytes, seen.seconds - self.seen.seconds
            if fall > 0 and (more / fall, -fall) < best_score:
                return _Move((), 0, fewer)
        return _Move(best[2:], best[1]) if best is not None else None

    def make(self, move: _Move) -> Iterator[RunOrder]:
        """Change the move's blocks a few at a time; yields the order of each rung. Taken back if it was
        useless."""
        if not move.blocks:
            self.inputs_kept = move.inputs_kept
            self.seen = self._look()
            yield self.order
            return
        before, seen_before = self.chosen.copy(), self.seen
        number = self.alike[move.blocks[0]]
        one, blocks = self.classes[number], np.array(move.blocks)
        if one.kept_bytes[move.option] >= one.kept_bytes[self.chosen[blocks]].min():
            blocks = blocks[::-1]  # what lowers only the rise helps most where most is alive already
        steps = min(len(blocks), self.rungs_per_move)
        for step in range(1, steps + 1):
            if steps == len(blocks):
                yield from self._halfway(one, int(blocks[step - 1]), move.option)
            self.chosen[blocks[: len(blocks) * step // steps]] = move.option
            self.seen = self._look()
            yield self.order
        if self.seen.peak_bytes >= seen_before.peak_bytes:
            self.chosen, self.seen = before, seen_before
            self.useless.add((number, move.option, *move.blocks))

    def _halfway(self, one: _Class, block: int, option: int, most: int = 3) -> Iterator[RunOrder]:
        """Orders with one block on its way to an option on options that keep less than now and more than
        then."""
        now = int(self.chosen[block])
        kept, seconds = one.kept_bytes, one.seconds
        between = (kept < kept[now]) & (kept > kept[option]) & (seconds < seconds[option])
        if between.any():
            slope = (seconds[option] - seconds[now]) / (kept[now] - kept[option])
            above_line = seconds - seconds[now] - slope * (kept[now] - kept)
            candidates = np.flatnonzero(between)
            for choice in candidates[np.argsort(above_line[candidates], kind="stable")][:most]:
                self.chosen[block] = choice
                self._look()
                yield self.order
            self.chosen[block] = now

    def _subsets(self, one: _Class) -> Iterator[np.ndarray]:
        """Blocks of a class that a move may change: those before the highest moment, with its own, all."""
        peak_segment = int(self.seen.segment_peaks.argmax())
        block_count = len(self.alike)
        at = min(peak_segment, 2 * block_count - 1 - peak_segment)
        sizes = dict.fromkeys((int((one.blocks < at).sum()), int((one.blocks <= at).sum()), len(one.blocks)))
        for size in sizes:
            if size:
                yield one.blocks[:size]

    def _estimate(self, one: _Class, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bytes by which the highest moment falls, seconds more), for these blocks on each option."""
        block_count = len(self.alike)
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

    def _look(self, inputs_kept: int = 0) -> Forecast:
        """The state's run order, rated; with another number of block inputs kept, if one is given."""
        shared, problem = shared_values(self.problem), self.problem
        lifetimes = bytearray(len(problem.values))
        for block, values in enumerate(forward_values(problem)):
            option = self.classes[self.alike[block]].options[self.chosen[block]]
            for value, life in zip(values, option.lifetimes, strict=True):
                lifetimes[value] = 0 if value in shared else life
        for block in _without_input(self.chain, inputs_kept or self.inputs_kept):
            for value in block_inputs(problem, block):
                if problem.ops[problem.maker[value]].block == block - 1:
                    lifetimes[value] = Lifetime.BACKWARD
        self.order = run_order(problem, lifetimes)
        return forecast(problem, self.order)


def _without_input(chain: tuple[int, ...], inputs_kept: int) -> list[int]:
    """Blocks whose inputs to drop so that never more than about `inputs_kept` inputs are alive, by the fewest
    runs of a block's forward again.

    The chain is cut into groups from the first block on; of each only the first input is kept, and when the
    backward of its last block begins the others are made again. The first group may have as many members as
    inputs are kept, the next one fewer by one, as the inputs of the groups before it stay alive meanwhile.
    """
    dropped: list[int] = []
    excess, at, room = len(chain) - inputs_kept, 0, inputs_kept
    while excess > 0 and room > 1:
        members = min(room, excess + 1)
        dropped += chain[at + 1 : at + members]
        excess -= members - 1
        at, room = at + members, room - 1
    return dropped
