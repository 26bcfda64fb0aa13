"""Lower the highest moment by what costs the least time per byte, layer class by layer class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isqrt

import numpy as np

from .blocks.layer_choices import Choice, LayerChoices, LayerClass
from .blocks.layers import in_blocks, in_layers
from .pareto import cheapest_under
from .problem.liveness import Candidate, RunOrder, forecast, schedule_of
from .problem.problem import Problem
from .problem.schedule import Schedule


@dataclass(frozen=True)
class Greedy:
    """From everything kept downwards: what lowers the highest moment at the least time per byte?

    The ways to run a layer (`options_of`) hold the best trades of bytes for time, and are found once per class
    of equal layers. A move puts a class's layers up to the one at the highest moment, or all of them, on another
    option; or keeps fewer inputs of layers (Chen et al. 2016, arXiv 1604.06174, nested); or makes a value that
    several layers use again. It is made layer by layer, each a rung of the ladder. So at any budget few
    distinct variants of a layer occur: those of whole moves, and one move half done. What the layer whose
    backward comes first keeps costs no peak and stays, unless a later move has to lower just that.

    Prices of options are estimates (what layers keep adds up, how high one rises comes on top); every rung is a
    run order, rated like all others, and a move that does not lower the peak is taken back.

    Guarantee: none; compare `lower_bound_seconds`. Cost: `visits` operations looked at for the options of all
    classes, then one forecast per rung (`rungs_per_move` at most per move) or tried value.
    """

    rungs_per_move: int = 16
    most_moves: int = 80
    visits: int = 4_000_000
    name: str = "greedy"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """The ladder, from the highest peak down."""
        ladder = _Ladder(LayerChoices(in_layers(problem), self.visits), self.rungs_per_move)
        for choice, order in ladder.rungs(self.most_moves):
            yield Candidate(ladder.choices.describe(choice), in_blocks(problem, order))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest of the ladder that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)


@dataclass(frozen=True)
class _Move:
    """A change to another choice, and by how much: seconds per byte of peak, then bytes of peak (negative)."""

    score: tuple[float, float]
    to: Choice
    layers: tuple[int, ...] = ()
    option: int = -1


class _Ladder:
    """Where the search stands, and the way down from there."""

    def __init__(self, choices: LayerChoices, rungs_per_move: int) -> None:
        self.choices, self.rungs_per_move = choices, rungs_per_move
        self.problem = choices.problem
        self.shared_values = choices.shared_values()[:rungs_per_move]
        self.useless: set[Choice] = set()
        self.now = choices.fastest()
        self.order = choices.order(self.now)
        self.seen = forecast(self.problem, self.order)

    def rungs(self, most_moves: int) -> Iterator[tuple[Choice, RunOrder]]:
        """Every choice on the way down with its order."""
        yield self.now, self.order
        for _ in range(most_moves):
            moves = [*self._option_moves(), *self._input_moves()]
            moves += self._shared_moves(min((move.score[0] for move in moves), default=np.inf))
            if not moves:
                return
            move = min(moves, key=lambda one: one.score)
            peak_bytes = self.seen.peak_bytes
            for choice in self._on_the_way(move):
                yield choice, self.choices.order(choice)
            order = self.choices.order(move.to)
            seen = forecast(self.problem, order)
            yield move.to, order
            if seen.peak_bytes < peak_bytes:
                self.now, self.order, self.seen = move.to, order, seen
            else:
                self.useless.add(move.to)

    def _option_moves(self) -> Iterator[_Move]:
        """For each class and each stretch of its layers the best other option, by estimate."""
        options = np.array(self.now.options)
        for one in self.choices.classes.values():
            for layers in self._stretches(one):
                fall, seconds = self._estimate(one, layers, options[layers])
                useful = np.flatnonzero(fall > 1e-4 * self.seen.peak_bytes)
                price = np.maximum(seconds[useful], 0.0) / fall[useful]
                for at in np.lexsort((-fall[useful], price)):
                    option = int(useful[at])
                    to = self.now.with_options(layers.tolist(), option)
                    if to not in self.useless:
                        score = (float(price[at]), -float(fall[option]))
                        yield _Move(score, to, tuple(layers.tolist()), option)
                        break

    def _input_moves(self) -> Iterator[_Move]:
        """Fewer inputs of layers kept: a rung fewer, half, few."""
        now, few = self.now.inputs_kept, isqrt(2 * len(self.choices.chain))
        rung = max(1, len(self.choices.chain) // self.rungs_per_move)
        for fewer in dict.fromkeys((now - rung, now // 2, few, few // 2)):
            if 0 < fewer < now:
                yield from self._tried(replace(self.now, inputs_kept=fewer))

    def _shared_moves(self, rival_price: float) -> Iterator[_Move]:
        """Values that several layers use made again, where that might cost less than the price of a rival."""
        for value in self.shared_values:
            if value in self.now.dropped:
                continue
            least_seconds = self.problem.ops[self.problem.maker[value]].seconds
            if least_seconds / self.problem.values[value].size_bytes < rival_price:
                yield from self._tried(replace(self.now, dropped=self.now.dropped | {value}))

    def _tried(self, choice: Choice) -> Iterator[_Move]:
        """The move to a choice, if it lowers the peak."""
        if choice in self.useless:
            return
        seen = forecast(self.problem, self.choices.order(choice))
        fall = self.seen.peak_bytes - seen.peak_bytes
        if fall > 0:
            yield _Move((max(seen.seconds - self.seen.seconds, 0.0) / fall, -fall), choice)

    def _on_the_way(self, move: _Move) -> Iterator[Choice]:
        """Choices between now and the end of a move: some layers changed; with few layers, one of them halfway."""
        if not move.layers:
            return
        layers, choice = move.layers, self.now
        one = self.choices.classes[self.choices.alike[layers[0]]]
        kept = one.kept_bytes
        if kept[move.option] >= min(kept[choice.options[layer]] for layer in layers):
            layers = layers[::-1]  # what lowers only the rise helps most where most is alive already
        rungs = min(len(layers), self.rungs_per_move)
        for rung in range(1, rungs + 1):
            if rungs == len(layers):
                yield from self._halfway(choice, one, layers[rung - 1], move.option)
            choice = self.now.with_options(layers[: len(layers) * rung // rungs], move.option)
            if rung < rungs:
                yield choice

    def _halfway(self, choice: Choice, one: LayerClass, layer: int, option: int) -> Iterator[Choice]:
        """Choices with one layer on options that keep less than its present one and more than its next one: the
        three best for what they keep."""
        now, kept, seconds = choice.options[layer], one.kept_bytes, one.seconds
        between = np.flatnonzero((kept < kept[now]) & (kept > kept[option]) & (seconds < seconds[option]))
        if len(between):
            slope = (seconds[option] - seconds[now]) / (kept[now] - kept[option])
            above_line = seconds[between] - slope * (kept[now] - kept[between])
            for at in np.argsort(above_line, kind="stable")[:3]:
                yield choice.with_options([layer], int(between[at]))

    def _stretches(self, one: LayerClass) -> list[np.ndarray]:
        """Layers of a class that a move may change: those before the highest moment, with its own, all."""
        layer_count = len(self.choices.alike)
        peak_segment = int(self.seen.segment_peaks.argmax())
        at = min(peak_segment, 2 * layer_count - 1 - peak_segment)
        sizes = {int((one.layers < at).sum()), int((one.layers <= at).sum()), len(one.layers)}
        return [one.layers[:size] for size in sorted(sizes) if size]

    def _estimate(self, one: LayerClass, layers: np.ndarray, options: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(bytes by which the highest moment falls, seconds more) for these layers on each option of their class.

        What a layer keeps is alive in all segments between its forward and its backward."""
        layer_count = len(self.choices.alike)
        kept = np.zeros((len(one.options), layer_count))
        rise = np.zeros((len(one.options), layer_count))
        kept[:, layers] = one.kept_bytes[:, None] - one.kept_bytes[options]
        rise[:, layers] = one.rise_bytes[:, None] - one.rise_bytes[options]
        base = np.cumsum(kept, axis=1)
        forward = self.seen.segment_peaks[:layer_count] + base - kept
        backward = self.seen.segment_peaks[layer_count:][::-1] + base + rise
        highest = np.maximum(forward.max(axis=1), backward.max(axis=1))
        seconds = (one.seconds[:, None] - one.seconds[options]).sum(axis=1)
        return self.seen.segment_peaks.max() - highest, seconds
