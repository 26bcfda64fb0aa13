"""Compares steps of eager and of the rewritten module: bit for bit, or within limits where results are rounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .tolerances import ALL_GRADIENTS, GRADIENT, Deviation, StepResults, deviations_of, same_bits, widest

GENERATOR = "generator state"
STEPPED = "parameter "  # prefix of the names of parameters after the optimizer's step

# Rewriting may move a single gradient this many times as far as a rounding of the parameters moves it in eager. Biases
# before BatchNorm, whose gradients consist of rounding only, were moved about as far by both.
_NUDGED = 8.0


@dataclass(frozen=True)
class Difference:
    """A result that was not the same after a step.

    step: the number of the step.
    what: the name of the result.
    largest: the largest difference where bits are compared, otherwise the relative error.
    """

    step: int
    what: str
    largest: float


@dataclass
class Comparison:
    """The differences in the steps so far.

    limit: None to compare bits, otherwise the relative error that rounding may cause (`tolerances.limit_of`).
    noise: the distance by which approximate codes are predicted to move all gradients together.
    compared: the number of tensors compared in each step.
    unstable: the results that differ between two runs of eager.
    """

    limit: float | None
    noise: float = 0.0
    compared: int = 0
    unstable: dict[str, None] = field(default_factory=dict)
    _differences: list[Difference] = field(default_factory=list)
    _deviations: list[Deviation] = field(default_factory=list)

    def add(
        self,
        step: int,
        eager: StepResults,
        repeated: StepResults,
        rewritten: StepResults,
        nudged: StepResults | None = None,
    ) -> None:
        """Compare the results of a step in eager, in eager once more, and rewritten.

        nudged: eager's gradients with every parameter moved by a rounding. A single gradient may deviate by a few times
            the effect of that.
        """
        if self.limit is None:
            self.compared = len(eager)
            self.unstable |= dict.fromkeys(difference.what for difference in _different_bits(step, eager, repeated))
            self._differences += _different_bits(step, eager, rewritten)
            return
        eager, repeated, rewritten = _before_stepping(eager), _before_stepping(repeated), _before_stepping(rewritten)
        self.compared = len(eager)
        self.unstable |= dict.fromkeys(e.what for e in deviations_of(eager, repeated, self.limit) if not e.is_within)
        if self.noise:  # codes that draw move the generator on
            eager, rewritten = ({w: t for w, t in results.items() if w != GENERATOR} for results in (eager, rewritten))
        deviations = deviations_of(eager, rewritten, self.limit, self.noise)
        if nudged is not None:
            moved = {e.what: e.relative for e in deviations_of({w: eager[w] for w in nudged}, nudged, self.limit)}
            deviations = [
                replace(e, limit=max(e.limit, _NUDGED * moved[e.what])) if e.what.startswith(GRADIENT) else e
                for e in deviations
            ]
        self._differences += [Difference(step, e.what, e.relative) for e in deviations if not e.is_within]
        self._deviations += deviations

    @property
    def differences(self) -> tuple[Difference, ...]:
        """Return the results that differ, except those that differ between two runs of eager."""
        return tuple(difference for difference in self._differences if difference.what not in self.unstable)

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        """Return for each kind of result the deviation nearest its limit, or furthest beyond it.

        The kinds are all gradients together, one gradient, and anything else. Where bits are compared there are none.
        """
        kinds: dict[str, Deviation] = {}
        for deviation in (deviation for deviation in self._deviations if deviation.what not in self.unstable):
            kind = next((kind for kind in (ALL_GRADIENTS, GRADIENT) if deviation.what.startswith(kind)), "")
            if (
                kind not in kinds
                or not deviation.relative / deviation.limit <= kinds[kind].relative / kinds[kind].limit
            ):
                kinds[kind] = deviation
        return tuple(kinds[kind] for kind in (ALL_GRADIENTS, GRADIENT, "") if kind in kinds)


def _different_bits(step: int, first_results: StepResults, second_results: StepResults) -> Iterator[Difference]:
    """Yield the results that are not the same to the bit."""
    for what in first_results.keys() | second_results.keys():
        left, right = first_results.get(what), second_results.get(what)
        if left is None or right is None:
            if left is not right:
                yield Difference(step, what, math.inf)
        elif left.shape != right.shape:
            yield Difference(step, what, math.inf)
        elif left.dtype != right.dtype or not same_bits(left, right):
            yield Difference(step, what, float((widest(left) - widest(right)).abs().max()))


def _before_stepping(results: StepResults) -> StepResults:
    """Return the results without the parameters after an optimizer's step, in which rounding is magnified."""
    return {what: tensor for what, tensor in results.items() if not what.startswith(STEPPED)}
