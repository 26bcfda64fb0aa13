"""Choices of an option for each layer of a step, and the run orders that they mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..problem.liveness import RunOrder
from ..problem.problem import Problem
from ..problem.units import format_keeping
from .block_values import alike, block_inputs, forward_values, middle_member, repeated_blocks, shared_values
from .lifetime_options import Option, options_of
from .rematerialize import Lifetime, droppable, run_order


@dataclass(frozen=True)
class Choice:
    """An option for every layer, the number of the chain's inputs kept, and the shared values also dropped."""

    options: tuple[int, ...]
    inputs_kept: int
    dropped: frozenset[int] = frozenset()

    def with_options(self, layers: Sequence[int], option: int) -> Choice:
        """Return the choice with some layers on another option."""
        changed = set(layers)
        return replace(self, options=tuple(option if i in changed else o for i, o in enumerate(self.options)))


@dataclass(frozen=True, eq=False)
class LayerClass:
    """The options of equal layers, from the most bytes kept to the fewest, also as arrays."""

    layers: np.ndarray
    options: tuple[Option, ...]
    kept_bytes: np.ndarray
    peak_above_start_bytes: np.ndarray
    seconds: np.ndarray


class LayerChoices:
    """The options of a step's layers; the step's blocks are layers (`in_layers`)."""

    def __init__(self, problem: Problem, visits: int) -> None:
        self.problem = problem
        self.alike = alike(problem)
        self.shared = shared_values(problem)
        self.chain = tuple(range(1, repeated_blocks(problem)[-1] + 1))  # layers whose inputs may be dropped
        self.classes: dict[int, LayerClass] = {}
        for first in dict.fromkeys(self.alike):
            layers = [layer for layer, other in enumerate(self.alike) if other == first]
            options = options_of(problem, middle_member(self.alike, first), visits // len(set(self.alike)))
            columns = zip(*((o.kept_bytes, o.peak_above_start_bytes, o.seconds) for o in options), strict=True)
            self.classes[first] = LayerClass(np.array(layers), options, *map(np.array, columns))

    def fastest(self) -> Choice:
        """Return the choice of the fastest options; of equally fast ones the one with the lowest peak."""
        fastest = {
            first: int(np.lexsort((layer_class.peak_above_start_bytes, layer_class.seconds))[0])
            for first, layer_class in self.classes.items()
        }
        return Choice(tuple(fastest[first] for first in self.alike), len(self.chain))

    def order(self, choice: Choice) -> RunOrder:
        """Return the run order that the choice means."""
        problem = self.problem
        lifetimes = bytearray(len(problem.values))
        for layer, values in enumerate(forward_values(problem)):
            option = self.classes[self.alike[layer]].options[choice.options[layer]]
            for value, life in zip(values, option.lifetimes, strict=True):
                lifetimes[value] = 0 if value in self.shared else life
        for layer in without_input(self.chain, choice.inputs_kept):
            for value in self.inputs_from_before(layer):
                lifetimes[value] = Lifetime.BACKWARD
        for value in choice.dropped:
            lifetimes[value] = max(lifetimes[value], Lifetime.BACKWARD)
        return run_order(problem, lifetimes)

    def inputs_from_before(self, layer: int) -> list[int]:
        """Return the values that the layer before makes for this one: the stream along the chain."""
        maker, ops = self.problem.maker, self.problem.ops
        return [v for v in block_inputs(self.problem, layer) if ops[maker[v]].block == layer - 1]

    def shared_values(self) -> list[int]:
        """Return shared values outside the chain of streams that may also be dropped, the largest first."""
        streams = {value for layer in self.chain[1:] for value in self.inputs_from_before(layer)}
        may_drop, values = droppable(self.problem), self.problem.values
        shared_values = [value for value in self.shared - streams if may_drop[value] and values[value].size_bytes]
        return sorted(shared_values, key=lambda value: (-values[value].size_bytes, value))

    def describe(self, choice: Choice) -> str:
        """Describe how many layers of each class keep how much."""
        parts = []
        for layer_class in self.classes.values():
            counts = np.bincount(np.array(choice.options)[layer_class.layers], minlength=len(layer_class.options))
            if counts[0] < len(layer_class.layers):
                amounts = (
                    format_keeping(counts[option], layer_class.kept_bytes[option]) for option in np.flatnonzero(counts)
                )
                parts.append(
                    f"of {len(layer_class.layers)} layers like layer {layer_class.layers[0]}: {', '.join(amounts)}"
                )
        if choice.inputs_kept < len(self.chain):
            parts.append(f"of {len(self.chain)} layer inputs {choice.inputs_kept} are kept")
        if choice.dropped:
            parts.append(f"{len(choice.dropped)} values that several layers use recomputed")
        return "; ".join(parts) or "everything kept"


def without_input(chain: Sequence[int], inputs_kept: int) -> list[int]:
    """Return the layers whose inputs to drop so that only `inputs_kept` are kept through forward.

    The chain is cut into groups from the first layer on, and only the first input of each group is kept. When the
    backward of a group's last layer begins, its other inputs are recomputed by one more run of each layer's forward.
    If possible the first group has at most `inputs_kept` members, the next one fewer by one, and so on. The inputs of
    earlier groups stay alive meanwhile, so no more than `inputs_kept` are ever alive. Otherwise groups are of equal
    size.
    """
    dropped: list[int] = []
    excess, at, room = len(chain) - inputs_kept, 0, inputs_kept
    while excess > 0 and room > 1:
        members = min(room, excess + 1)
        dropped += chain[at + 1 : at + members]
        excess -= members - 1
        at, room = at + members, room - 1
    if excess > 0:
        kept = {number * len(chain) // inputs_kept for number in range(inputs_kept)}
        return [layer for number, layer in enumerate(chain) if number not in kept]
    return dropped
