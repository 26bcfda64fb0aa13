"""Compares steps of eager and of the rewritten module: bit for bit, or within limits where results are rounded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from .tolerances import ALL_GRADIENTS, GRADIENT, Error, Told, errors_of, same_bits, widest

GENERATOR = "generator state"
STEPPED = "parameter "  # what the names of parameters after the optimizer's step begin with

# How many times as far as a rounding of the parameters moves a single gradient in eager, rewriting may move it. Biases
# before BatchNorm, whose gradients are nothing but what was rounded, were moved about as far by both.
_NUDGED = 8.0


@dataclass(frozen=True)
class Difference:
    """Something that was not the same after a step: to the bit, and then by how much at most; or within its limit, and
    then its relative error."""

    step: int
    what: str
    largest: float


@dataclass
class Comparison:
    """What was found in the steps so far.

    limit: None to compare bits; else the relative error that rounding may cause (`relative_errors.limit_of`).
    noise: the distance by which approximate codes are predicted to move all gradients together.
    compared: how many tensors of each step; unstable: what differs between two runs of eager.
    """

    limit: float | None
    noise: float = 0.0
    compared: int = 0
    unstable: dict[str, None] = field(default_factory=dict)
    _found: list[Difference] = field(default_factory=list)
    _errors: list[Error] = field(default_factory=list)

    def add(self, step: int, eager: Told, again: Told, rewritten: Told, nudged: Told | None = None) -> None:
        """Compares what a step gave in eager, in eager once more, and rewritten.

        nudged: eager's gradients with every parameter moved by a rounding: a single gradient may be off by a few times
        what that moves it.
        """
        if self.limit is None:
            self.compared = len(eager)
            self.unstable |= dict.fromkeys(one.what for one in _different_bits(step, eager, again))
            self._found += _different_bits(step, eager, rewritten)
            return
        eager, again, rewritten = _before_stepping(eager), _before_stepping(again), _before_stepping(rewritten)
        self.compared = len(eager)
        self.unstable |= dict.fromkeys(e.what for e in errors_of(eager, again, self.limit) if not e.is_within)
        if self.noise:  # codes that draw move the generator on
            eager, rewritten = ({w: t for w, t in told.items() if w != GENERATOR} for told in (eager, rewritten))
        errors = errors_of(eager, rewritten, self.limit, self.noise)
        if nudged is not None:
            moved = {e.what: e.relative for e in errors_of({w: eager[w] for w in nudged}, nudged, self.limit)}
            errors = [
                replace(e, limit=max(e.limit, _NUDGED * moved[e.what])) if e.what.startswith(GRADIENT) else e
                for e in errors
            ]
        self._found += [Difference(step, e.what, e.relative) for e in errors if not e.is_within]
        self._errors += errors

    @property
    def differences(self) -> tuple[Difference, ...]:
        """What differs, and does not between two runs of eager."""
        return tuple(one for one in self._found if one.what not in self.unstable)

    @property
    def errors(self) -> tuple[Error, ...]:
        """The error nearest its limit, or furthest beyond, of each kind: all gradients together, one gradient, anything
        else; where bits were compared, none."""
        kinds: dict[str, Error] = {}
        for one in (one for one in self._errors if one.what not in self.unstable):
            kind = next((kind for kind in (ALL_GRADIENTS, GRADIENT) if one.what.startswith(kind)), "")
            if kind not in kinds or not one.relative / one.limit <= kinds[kind].relative / kinds[kind].limit:
                kinds[kind] = one
        return tuple(kinds[kind] for kind in (ALL_GRADIENTS, GRADIENT, "") if kind in kinds)


def _different_bits(step: int, first: Told, second: Told) -> Iterator[Difference]:
    """What is not the same to the bit."""
    for what in first.keys() | second.keys():
        one, other = first.get(what), second.get(what)
        if one is None or other is None:
            if one is not other:
                yield Difference(step, what, math.inf)
        elif one.shape != other.shape:
            yield Difference(step, what, math.inf)
        elif one.dtype != other.dtype or not same_bits(one, other):
            yield Difference(step, what, float((widest(one) - widest(other)).abs().max()))


def _before_stepping(told: Told) -> Told:
    """Without the parameters that an optimizer's step left, in which rounding is magnified."""
    return {what: one for what, one in told.items() if not what.startswith(STEPPED)}
