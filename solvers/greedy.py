"""Lower the highest moment by the move of least time per byte, layer class by layer class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isqrt

import numpy as np

from .blocks.layer_choices import Choice, LayerChoices, LayerClass
from .blocks.layers import in_blocks, in_layers
from .candidates.pareto import cheapest_under
from .problem.liveness import Candidate, RunOrder, forecast, schedule_of
from .problem.problem import Problem
from .problem.schedule import Schedule
from .solver import Solver


@dataclass(frozen=True)
class Greedy(Solver):
    """Start with everything kept and lower the highest moment by the moves of least time per byte.

    The options of a layer (`options_of`) are the best trades of bytes for time, found once per class of equal layers.
    There are three kinds of moves. The first puts layers of a class on another option: those up to the layer at the
    highest moment, or all. The second keeps fewer inputs of layers (Chen et al. 2016, arXiv 1604.06174, nested). The
    third recomputes a value that several layers use. A move is made layer by layer, and each step is a candidate. So at
    any budget few distinct schedules of a layer occur: those of whole moves, and one move half done. The values that
    the layer keeps whose backward comes first cost no peak. They stay, unless a later move has to lower just that.

    Prices of options are estimates: the bytes kept by layers add up, and the largest peak above start is added. Every
    candidate is a run order, rated like all others, and a move that does not lower the peak is undone.

    candidates_per_move: at most.
    most_moves: at most.
    visits: operations looked at for the options of all classes.

    Guarantee: none; compare `lower_bound_seconds`. Cost: `visits`, then one forecast per candidate or tried value.
    """

    candidates_per_move: int = 16
    most_moves: int = 80
    visits: int = 4_000_000
    name: str = "greedy"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """Yield the candidates from the highest peak down."""
        descent = _Descent(LayerChoices(in_layers(problem), self.visits), self.candidates_per_move)
        for choice, order in descent.candidates(self.most_moves):
            yield Candidate(descent.choices.describe(choice), in_blocks(problem, order))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """Return the fastest candidate that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)


@dataclass(frozen=True)
class _Move:
    """A change to another choice.

    score: seconds per byte of peak, then bytes of peak (negative).
    """

    score: tuple[float, float]
    to: Choice
    layers: tuple[int, ...] = ()
    option: int = -1


class _Descent:
    """The state of the search: the current choice, its run order and its forecast."""

    def __init__(self, choices: LayerChoices, candidates_per_move: int) -> None:
        self.choices, self.candidates_per_move = choices, candidates_per_move
        self.problem = choices.problem
        self.shared_values = choices.shared_values()[:candidates_per_move]
        self.rejected: set[Choice] = set()
        self.current = choices.fastest()
        self.order = choices.order(self.current)
        self.prediction = forecast(self.problem, self.order)

    def candidates(self, most_moves: int) -> Iterator[tuple[Choice, RunOrder]]:
        """Yield every choice of the descent with its run order."""
        yield self.current, self.order
        for _ in range(most_moves):
            moves = [*self._option_moves(), *self._input_moves()]
            moves += self._shared_moves(min((move.score[0] for move in moves), default=np.inf))
            if not moves:
                return
            move = min(moves, key=lambda move: move.score)
            peak_bytes = self.prediction.peak_bytes
            for choice in self._intermediate_choices(move):
                yield choice, self.choices.order(choice)
            order = self.choices.order(move.to)
            prediction = forecast(self.problem, order)
            yield move.to, order
            if prediction.peak_bytes < peak_bytes:
                self.current, self.order, self.prediction = move.to, order, prediction
            else:
                self.rejected.add(move.to)

    def _option_moves(self) -> Iterator[_Move]:
        """Yield for each class and each stretch of its layers the move to the best other option, by estimate."""
        options = np.array(self.current.options)
        for layer_class in self.choices.classes.values():
            for layers in self._stretches(layer_class):
                fall, seconds = self._estimate(layer_class, layers, options[layers])
                useful = np.flatnonzero(fall > 1e-4 * self.prediction.peak_bytes)
                price = np.maximum(seconds[useful], 0.0) / fall[useful]
                for place in np.lexsort((-fall[useful], price)):
                    option = int(useful[place])
                    to = self.current.with_options(layers.tolist(), option)
                    if to not in self.rejected:
                        score = (float(price[place]), -float(fall[option]))
                        yield _Move(score, to, tuple(layers.tolist()), option)
                        break

    def _input_moves(self) -> Iterator[_Move]:
        """Yield moves to fewer kept inputs of layers: one step fewer, half, few."""
        kept, few = self.current.inputs_kept, isqrt(2 * len(self.choices.chain))
        step = max(1, len(self.choices.chain) // self.candidates_per_move)
        for fewer in dict.fromkeys((kept - step, kept // 2, few, few // 2)):
            if 0 < fewer < kept:
                yield from self._move_to(replace(self.current, inputs_kept=fewer))

    def _shared_moves(self, rival_price: float) -> Iterator[_Move]:
        """Yield moves that recompute a value that several layers use, if one might cost less than the rival price."""
        for value in self.shared_values:
            if value in self.current.dropped:
                continue
            least_seconds = self.problem.ops[self.problem.maker[value]].seconds
            if least_seconds / self.problem.values[value].size_bytes < rival_price:
                yield from self._move_to(replace(self.current, dropped=self.current.dropped | {value}))

    def _move_to(self, choice: Choice) -> Iterator[_Move]:
        """Yield the move to a choice, if it lowers the peak."""
        if choice in self.rejected:
            return
        prediction = forecast(self.problem, self.choices.order(choice))
        fall = self.prediction.peak_bytes - prediction.peak_bytes
        if fall > 0:
            yield _Move((max(prediction.seconds - self.prediction.seconds, 0.0) / fall, -fall), choice)

    def _intermediate_choices(self, move: _Move) -> Iterator[Choice]:
        """Yield choices within a move: some layers changed; with few layers, also one of them halfway."""
        if not move.layers:
            return
        layers, choice = move.layers, self.current
        layer_class = self.choices.classes[self.choices.alike[layers[0]]]
        kept = layer_class.kept_bytes
        if kept[move.option] >= min(kept[choice.options[layer]] for layer in layers):
            layers = layers[
                ::-1
            ]  # an option that lowers only the peak above start helps most where most bytes are alive
        steps = min(len(layers), self.candidates_per_move)
        for step in range(1, steps + 1):
            if steps == len(layers):
                yield from self._halfway(choice, layer_class, layers[step - 1], move.option)
            choice = self.current.with_options(layers[: len(layers) * step // steps], move.option)
            if step < steps:
                yield choice

    def _halfway(self, choice: Choice, layer_class: LayerClass, layer: int, option: int) -> Iterator[Choice]:
        """Yield choices with one layer on an option between its current one and its next one.

        They keep fewer bytes than the current option and more than the next one; the three best for their bytes.
        """
        current, kept, seconds = choice.options[layer], layer_class.kept_bytes, layer_class.seconds
        between = np.flatnonzero((kept < kept[current]) & (kept > kept[option]) & (seconds < seconds[option]))
        if len(between):
            slope = (seconds[option] - seconds[current]) / (kept[current] - kept[option])
            above_line = seconds[between] - slope * (kept[current] - kept[between])
            for place in np.argsort(above_line, kind="stable")[:3]:
                yield choice.with_options([layer], int(between[place]))

    def _stretches(self, layer_class: LayerClass) -> list[np.ndarray]:
        """Return the layers of a class that a move may change: before the highest moment, up to it, all."""
        layer_count = len(self.choices.alike)
        peak_segment = int(self.prediction.segment_peaks.argmax())
        peak_layer = min(peak_segment, 2 * layer_count - 1 - peak_segment)
        sizes = {
            int((layer_class.layers < peak_layer).sum()),
            int((layer_class.layers <= peak_layer).sum()),
            len(layer_class.layers),
        }
        return [layer_class.layers[:size] for size in sorted(sizes) if size]

    def _estimate(
        self, layer_class: LayerClass, layers: np.ndarray, options: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the fall of the highest moment in bytes and the extra seconds for each option of a class.

        The option is given to all of `layers`; `options` are their current ones. The bytes that a layer keeps are alive
        in all segments between its forward and its backward.
        """
        layer_count = len(self.choices.alike)
        kept = np.zeros((len(layer_class.options), layer_count))
        above_start = np.zeros((len(layer_class.options), layer_count))
        kept[:, layers] = layer_class.kept_bytes[:, None] - layer_class.kept_bytes[options]
        above_start[:, layers] = (
            layer_class.peak_above_start_bytes[:, None] - layer_class.peak_above_start_bytes[options]
        )
        base = np.cumsum(kept, axis=1)
        forward = self.prediction.segment_peaks[:layer_count] + base - kept
        backward = self.prediction.segment_peaks[layer_count:][::-1] + base + above_start
        highest = np.maximum(forward.max(axis=1), backward.max(axis=1))
        seconds = (layer_class.seconds[:, None] - layer_class.seconds[options]).sum(axis=1)
        return self.prediction.segment_peaks.max() - highest, seconds
