"""Checks the noise of approximate gradients against the prediction: its amount, and whether it has a bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isnan
from typing import Any

from torch import Tensor

from ..noise.perturbed_backward import energy_of
from ..plan.step_problem import PlannedStep
from .tolerances import ALL_GRADIENTS, ALONE, GRADIENT, StepResults

# The largest ratios of measured to predicted energy. Measured on the models of the tests: up to 1.8 in a weight's
# gradient and 5 in a bias's, which adds up noise that rows have in common; 0.6 to 1.3 in all gradients together.
_SLACK_ALONE = 6.0
_SLACK_TOGETHER = 2.25
_SMALL = 1e-2  # share of the average element's energy that every gradient's noise may have without a prediction
# Shares of energies that may be the same in each draw. Codes that draw have some, since backward squares the noise in
# the values of tanh, norms and softmax (a fifth was measured, with 2 bits). Codes that round to the nearest have more.
_BIAS_OF_DRAWN = 0.4
_BIAS_OF_NEAREST = 2.0
_DEVIATIONS = 5.0


@dataclass(frozen=True)
class NoisyGradient:
    """The noise of a gradient, or of all together: mean ‖ĝ − g‖² over draws, as a share of the own variance of all.

    what: the name of the gradient.
    predicted: the predicted noise.
    measured: the measured noise.
    limit: the most noise allowed.
    """

    what: str
    predicted: float
    measured: float
    limit: float

    @property
    def is_within(self) -> bool:
        """Return whether the noise is at most its limit; NaN is not."""
        return self.measured <= self.limit

    @property
    def share_of_limit(self) -> float:
        """Return the noise as a share of its limit: infinite for NaN, and for noise where none is allowed."""
        if self.limit > 0 and not isnan(self.measured):
            return self.measured / self.limit
        return 0.0 if self.is_within else inf


@dataclass(frozen=True)
class MeasuredNoise:
    """The noise over several draws.

    draws: the number of draws.
    together: the noise of all gradients together.
    alone: the noise of each gradient.
    bias: ‖E ĝ − g‖² of all gradients together, without the draws' own noise, as a share of the gradient's own variance.
        The mean of n draws has this and an n-th of the noise.
    bias_limit: the most bias allowed.
    most_biased: the gradient with the largest bias.
    """

    draws: int
    together: NoisyGradient
    alone: tuple[NoisyGradient, ...]
    bias: float
    bias_limit: float
    most_biased: str

    @property
    def faults(self) -> Iterator[str]:
        """Yield a sentence about each gradient with too much noise, and about a bias."""
        for gradient in (self.together, *self.alone):
            if not gradient.is_within:
                yield (
                    f"{gradient.what}: codes add {gradient.measured:.1e} of the gradient's own variance over "
                    f"{self.draws} draws, {gradient.predicted:.1e} was predicted (limit {gradient.limit:.1e})"
                )
        if not self.bias <= self.bias_limit:
            yield (
                f"the mean over {self.draws} draws does not come nearer to the gradient: codes bias it by "
                f"{self.bias:.1e} of its own variance (limit {self.bias_limit:.1e}), {self.most_biased} most"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and texts, for JSON."""
        return asdict(self)


@dataclass
class GradientNoise:
    """Sums up the noise of draws.

    predicted: the predicted energy of the noise, by the name of the gradient.
    from_nearest: the part of that energy from codes that round to the nearest.
    rounding: the relative error allowed in addition for all gradients together.
    own_variance: the variance of the gradient without codes.
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
        """Build the sums for the codes of a plan; None if it has no approximate codes."""
        sensitivity, plan = planned.measured.sensitivity, planned.plan
        if sensitivity is None or not plan.encoding_error > 0:
            return None
        codecs = {(s, number): planned.mapping.codec_sites[s][number].codec for s, number in planned.encoded_sites}
        nearest = [key for key, codec in codecs.items() if codec.fidelity == "approximate" and not codec.draws]
        predicted = {f"{GRADIENT}{source.name}": noise for source, noise in sensitivity.by_gradient(codecs).items()}
        return GradientNoise(
            predicted, sum(sensitivity.by_gradient(nearest).values()), rounding, sensitivity.own_variance
        )

    def add(self, eager: StepResults, rewritten: StepResults) -> None:
        """Add a draw: the gradients of the same step in eager and rewritten."""
        for what in self.predicted:
            exact, noisy = eager.get(what), rewritten.get(what)
            if exact is not None and noisy is not None and exact.shape == noisy.shape:
                deviation = noisy - exact
                self._energies.setdefault(what, []).append(energy_of(deviation))
                self._exact[what] = energy_of(exact)
                self._sums[what] = self._sums[what].add_(deviation) if what in self._sums else deviation

    def summarize(self) -> MeasuredNoise | None:
        """Return the noise over at least two draws; None if no gradient that noise reaches is present."""
        if not self._energies:
            return None
        draws = len(next(iter(self._energies.values())))
        elements = {what: total.numel() for what, total in self._sums.items()}
        mean = {what: sum(energies) / draws for what, energies in self._energies.items()}
        bias = {what: (energy_of(self._sums[what]) / draws - mean[what]) / (draws - 1) for what in mean}
        whole = sum(self.predicted[what] for what in mean)
        rounding, element_energy = self.rounding**2, _SMALL * whole / sum(elements.values())
        alone = [
            self._judged(
                what,
                energies,
                self.predicted[what],
                _SLACK_ALONE,
                ALONE**2 * rounding * self._exact[what] + element_energy * elements[what],
            )
            for what, energies in self._energies.items()
        ]
        in_all = [sum(draw) for draw in zip(*self._energies.values(), strict=True)]
        rounding *= sum(self._exact.values())
        limit = _BIAS_OF_DRAWN * whole + _BIAS_OF_NEAREST * self.from_nearest + rounding
        # ‖e‖² of noise with m equal parts varies by √(2 / m) of itself, the product of two draws' noise by √(1 / m)
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
        self, what: str, energies: Sequence[float], predicted: float, slack: float, unpredicted: float
    ) -> NoisyGradient:
        """Return the noise of a gradient with its limit.

        unpredicted: energy that is allowed although it is not predicted.
        """
        measured = sum(energies) / len(energies)
        limit = slack * predicted * (1 + _DEVIATIONS * _spread(energies) / len(energies) ** 0.5) + unpredicted
        return NoisyGradient(what, *(energy / self.own_variance for energy in (predicted, measured, limit)))


def _spread(energies: Sequence[float]) -> float:
    """Return the standard deviation of the draws as a share of their mean, at most that of the square of one normal
    number.
    """
    mean = sum(energies) / len(energies)
    deviation = (sum((energy - mean) ** 2 for energy in energies) / (len(energies) - 1)) ** 0.5
    return min(deviation / mean, 2**0.5) if mean else 0.0
