"""Holds the noise of approximate gradients against what is predicted: how much there is, and whether it has a bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isnan
from typing import Any

from torch import Tensor

from ..noise.perturbed_backward import energy_of
from ..plan.step import PlannedStep
from .tolerances import ALL_GRADIENTS, ALONE, GRADIENT, Told

# Times the predicted energy that there may be. Measured on the models of the tests: up to 1.8 times in a weight's
# gradient and 5 times in a bias's, which adds up noise that rows have in common; 0.6 to 1.3 times in all together.
_SLACK_ALONE = 6.0
_SLACK_TOGETHER = 2.25
_SMALL = 1e-2  # of the average element's energy, that every gradient's noise may have though it is not predicted
# Shares of energies that may be the same in each draw: of codes that draw, since backward squares the noise of what it
# reads of tanh, norms and softmax (a fifth was measured, with 2 bits), and of those that round to the nearest.
_BIAS_OF_DRAWN = 0.4
_BIAS_OF_NEAREST = 2.0
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class NoisyGradient:
    """The noise of a gradient, or of all together: mean ‖ĝ − g‖² over draws, as a share of the own variance of all."""

    what: str
    predicted: float
    measured: float
    limit: float

    @property
    def is_within(self) -> bool:
        """Whether there is no more of it than there may be; NaN is."""
        return self.measured <= self.limit

    @property
    def share_of_limit(self) -> float:
        """What there is of what there may be: infinite where there may be none and is some, and for NaN."""
        if self.limit > 0 and not isnan(self.measured):
            return self.measured / self.limit
        return 0.0 if self.is_within else inf


@dataclass(frozen=True)
class MeasuredNoise:
    """What so many draws say. bias: ‖E ĝ − g‖² of all gradients together, estimated without the draws' own noise, as a
    share of the gradient's own variance; the mean of n draws has this and an n-th of the noise. most_biased: the
    gradient that has most of it."""

    draws: int
    together: NoisyGradient
    alone: tuple[NoisyGradient, ...]
    bias: float
    bias_limit: float
    most_biased: str

    @property
    def faults(self) -> Iterator[str]:
        """What is wrong, in words."""
        for one in (self.together, *self.alone):
            if not one.is_within:
                yield (
                    f"{one.what}: codes add {one.measured:.1e} of the gradient's own variance over {self.draws} draws, "
                    f"{one.predicted:.1e} was predicted (limit {one.limit:.1e})"
                )
        if not self.bias <= self.bias_limit:
            yield (
                f"the mean over {self.draws} draws does not come nearer to the gradient: codes bias it by "
                f"{self.bias:.1e} of its own variance (limit {self.bias_limit:.1e}), {self.most_biased} most"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, for JSON."""
        return asdict(self)


@dataclass
class GradientNoise:
    """Sums up the noise of draws.

    predicted: its energy by the name of the gradient; from_nearest: what of it codes make that round to the nearest;
    rounding: the relative error that all gradients together may have besides.
    """

    predicted: Mapping[str, float]
    from_nearest: float
    rounding: float
    own_variance: float
    _sums: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _energies: dict[str, list[float]] = field(default_factory=dict, repr=False)
    _exact: dict[str, float] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(planned: PlannedStep, rounding: float) -> GradientNoise | None:
        """For the codes of a plan; None if it has no approximate ones."""
        sensitivity, plan = planned.costs.sensitivity, planned.plan
        if sensitivity is None or not plan.encoding_error > 0:
            return None
        codecs = {(s, number): planned.posed.codec_sites[s][number].codec for s, number in planned.coded}
        nearest = [key for key, codec in codecs.items() if codec.fidelity == "approximate" and not codec.draws]
        told = {f"{GRADIENT}{source.name}": noise for source, noise in sensitivity.by_gradient(codecs).items()}
        return GradientNoise(told, sum(sensitivity.by_gradient(nearest).values()), rounding, sensitivity.own_variance)

    def add(self, eager: Told, rewritten: Told) -> None:
        """One more draw: what the same step gave in eager and rewritten."""
        for what in self.predicted:
            one, other = eager.get(what), rewritten.get(what)
            if one is not None and other is not None and one.shape == other.shape:
                off = other - one
                self._energies.setdefault(what, []).append(energy_of(off))
                self._exact[what] = energy_of(one)
                self._sums[what] = self._sums[what].add_(off) if what in self._sums else off

    def found(self) -> MeasuredNoise | None:
        """What the draws say, two at least; None if no gradient that noise reaches is there."""
        if not self._energies:
            return None
        draws = len(next(iter(self._energies.values())))
        elements = {what: told.numel() for what, told in self._sums.items()}
        mean = {what: sum(told) / draws for what, told in self._energies.items()}
        bias = {what: (energy_of(self._sums[what]) / draws - mean[what]) / (draws - 1) for what in mean}
        whole = sum(self.predicted[what] for what in mean)
        rounding, least = self.rounding**2, _SMALL * whole / sum(elements.values())
        alone = [
            self._judged(
                what,
                told,
                self.predicted[what],
                _SLACK_ALONE,
                ALONE**2 * rounding * self._exact[what] + least * elements[what],
            )
            for what, told in self._energies.items()
        ]
        in_all = [sum(told) for told in zip(*self._energies.values(), strict=True)]
        rounding *= sum(self._exact.values())
        limit = _BIAS_OF_DRAWN * whole + _BIAS_OF_NEAREST * self.from_nearest + rounding
        # of noise with m equal parts ‖e‖² strays by √(2 / m) of itself, the product of two draws' noise by √(1 / m)
        limit += _DEVIATIONS * _spread(in_all) * whole / (draws * (draws - 1)) ** 0.5
        return MeasuredNoise(
            draws,
            self._judged(ALL_GRADIENTS, in_all, whole, _SLACK_TOGETHER, rounding),
            tuple(alone),
            sum(bias.values()) / self.own_variance,
            limit / self.own_variance,
            max(bias, key=bias.__getitem__),
        )

    def _judged(
        self, what: str, energies: Sequence[float], predicted: float, slack: float, besides: float
    ) -> NoisyGradient:
        """besides: energy that there may be and is not predicted."""
        measured = sum(energies) / len(energies)
        limit = slack * predicted * (1 + _DEVIATIONS * _spread(energies) / len(energies) ** 0.5) + besides
        return NoisyGradient(what, *(one / self.own_variance for one in (predicted, measured, limit)))


def _spread(energies: Sequence[float]) -> float:
    """How far draws stray from their mean, as a share of it: no further than the square of one normal number."""
    mean = sum(energies) / len(energies)
    deviation = (sum((one - mean) ** 2 for one in energies) / (len(energies) - 1)) ** 0.5
    return min(deviation / mean, 2**0.5) if mean else 0.0
