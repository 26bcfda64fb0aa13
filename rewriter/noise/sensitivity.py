"""Measure the effect of noise in each value, by each codec, on the gradient, in a few runs of a step.

Backward is linear in what comes from the loss, so small noise travels through it independently of other noise. One run
of the step (`replay.Replay`) measures, at each kernel of backward,

    its gain: ‖f(g + n) − f(g)‖² / ‖n‖² for noise n of each kind (`propagation`) on each gradient g that it reads, and
    the noise of a code: ‖f(decode(encode(v))) − f(v)‖² for each value v of forward that it reads and that has codecs.

S(g) is the increase of E‖ĝ − g‖² over all parameters by noise of energy 1 in g. It is computed from the last kernel
to the first: S(g) = Σ over readers of gain · S(result), with S = 1 for the parameters' own gradients. The increase by a
codec is Σ over
readers of noise · S. The noise comes from one code of each value and is propagated through backward alongside the
exact gradients. A kernel of backward is rerun for each gradient and kind of noise, and for one codec of each family
that it reads; the others of the family are scaled by their squared errors of the value itself. In cheap kernels,
codecs with large errors, which need not be proportional, are measured themselves. Values with few elements are
measured with as many draws as an energy needs (`kernel_noise.FEW`).

Energies do not describe the directions of noise, nor correlations between its parts: in trained networks this
prediction is between half and twice the measured value. So perturbed values are propagated through backward once more
(`perturbed_backward`) for each class of similar values, with the codes of all of them. The prediction of each is scaled
to the measured total. If no kernel reads their noise, as for inputs of products with weights, the first measurement is
exact. Codecs that round to nearest are biased: their errors add up over samples and layers. So they are measured once
more by each of their names, if their effect matters and a plan may use them, and are never scaled down.

The error of a codec site is its increase as a share of the gradient's own variance: the maximum of the share in all
gradients together, and of the mean share over the elements of each gradient. Adam divides each element by its own
size, so that noise which is negligible in the sum may dominate some elements: attention's queries and keys have tiny
gradients for many steps. `gradient_variance` estimates the gradient's own variance in the first run.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from math import fsum, inf, isfinite

import torch

from ...passes.build_problem import ProblemMapping
from ...passes.encodings.codec_sites import CodecSite
from ...passes.sources import Source
from ...passes.step_graph import StepGraph
from ...solvers.problem.schedule import Schedule
from .gradient_variance import SampleSigns
from .kernel_noise import FEW, MEASURE_SEED, NoiseMeasurer, representative
from .perturbed_backward import PerturbedRun, errors_alongside
from .propagation import NoisePaths
from .replay import Replay

_WORTH_A_RUN = 1e-3  # the least share of the noise of all codes that is worth a perturbed run
_WORTH_OF_BUDGET = 1e-2  # the least share of the error budget that is worth one for biased codecs,
_NEGLIGIBLE = 1e-4  # but at most this share of the gradient's own variance
_RUNS_AT_ONCE = 4  # perturbed runs at once: each holds half of the bytes of the live gradients
_LEAST_VARIANCE = 1e-4  # the least variance of an element, relative to the average one: some are only rounding


@dataclass(frozen=True)
class Sensitivity:
    """The measured sensitivity of the gradient to codecs.

    codec_sites: the codec sites by storage, fitted to the measured values, with their errors.
    added: for each codec site the energy that it adds to E‖ĝ − g‖².
    own: the variance of each parameter's or input's gradient between batches.
    squared_gradient: ‖g‖².
    paths: the propagation of noise.
    """

    codec_sites: Mapping[int, tuple[CodecSite, ...]]
    added: Mapping[int, tuple[float, ...]]
    own: Mapping[Source, float]
    squared_gradient: float
    paths: NoisePaths = field(default_factory=NoisePaths, repr=False)

    @property
    def own_variance(self) -> float:
        """The variance of all gradients together."""
        return fsum(self.own.values())

    def by_gradient(self, chosen: Iterable[tuple[int, int]]) -> dict[Source, float]:
        """Return the energy that codec sites, given as (storage, number), add to E‖ĝ − g‖² of each gradient."""
        totals = {
            (storage, number): energy
            for storage, energies in self.added.items()
            for number, energy in enumerate(energies)
        }
        return self.paths.by_gradient(chosen, totals)

    def energy(self, chosen: Iterable[tuple[int, int]]) -> float:
        """Return the energy that codec sites, given as (storage, number), add to E‖ĝ − g‖² of all gradients."""
        return fsum(self.added[storage][number] for storage, number in chosen)


def sensitivity_of(
    step: StepGraph,
    mapping: ProblemMapping,
    schedule: Schedule,
    tensors: Mapping[Source, torch.Tensor],
    codec_sites: Mapping[int, tuple[CodecSite, ...]],
    batch: tuple[int, int],
    device: torch.device,
    error_budget: float = inf,
) -> Sensitivity:
    """Run a schedule a few times and measure the sensitivity.

    batch: the number of samples, and of tokens in each (1 if there are none).
    error_budget: the budget of a plan; codecs whose predicted error alone exceeds it are not measured further.

    The generator is restored. The peak exceeds the schedule's by a few times the bytes of the largest kernel of
    backward.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices=devices):

        def replay() -> Replay:
            torch.manual_seed(MEASURE_SEED)
            return Replay(step, mapping, tensors, device)

        measurer = NoiseMeasurer(replay(), dict(codec_sites), SampleSigns(step, *batch, MEASURE_SEED, device))
        measurer.run(schedule)
        predictions = _Predictions(measurer)
        remaining = iter(cases := list(predictions.cases(error_budget)))
        while together := list(islice(remaining, _RUNS_AT_ONCE)):
            perturbed_runs = [
                PerturbedRun(measurer.decoded(case.numbers), range(len(mapping.kernels))) for case in together
            ]
            for source, _, squares in errors_alongside(replay(), schedule, perturbed_runs):
                for case, square in zip(together, squares, strict=True):
                    case.measured[source] = case.measured.get(source, 0.0) + square
        for case in cases:
            predictions.scale(case)
    return predictions.sensitivity()


@dataclass
class _Case:
    """Codec sites that are measured together.

    numbers: the number of the codec site, by storage.
    is_alone: whether the result applies only to these, and not to all codec sites of their storages.
    least: the least factor by which the prediction is scaled.
    measured: the energy that they add to each gradient.
    """

    numbers: Mapping[int, int]
    is_alone: bool = False
    least: float = 0.0
    measured: dict[Source, float] = field(default_factory=dict)


class _Predicted:
    """The predicted energy that each codec site adds to all gradients, by storage, each gradient with a weight.

    added: the prediction for all gradients.
    _certain: the prediction for gradients with enough elements for a single draw.
    """

    def __init__(self, measurer: NoiseMeasurer, weights: Mapping[Source, float]) -> None:
        self._weights = {
            source: weight if measurer.elements[source] >= FEW else 0.0 for source, weight in weights.items()
        }
        self.added, self._certain = measurer.added(weights), measurer.added(self._weights)

    def scale(self, case: _Case) -> None:
        """Scale the prediction to the measured total of the codec sites of a case."""
        whole = fsum(self._weights[source] * energy for source, energy in case.measured.items())
        predicted = fsum(self._certain[storage][number] for storage, number in case.numbers.items())
        factor = max(whole / predicted, case.least) if predicted else 1.0
        for energies in (self.added, self._certain):
            for storage, number in case.numbers.items():
                scaled = enumerate(energies[storage])
                energies[storage] = [
                    energy if case.is_alone and n != number else energy * factor for n, energy in scaled
                ]


class _Predictions:
    """The predictions of the first run, which perturbed runs then scale.

    energies: the energy that each codec site adds to all gradients together, by storage.
    shares: the mean share of an element's own variance.
    """

    def __init__(self, measurer: NoiseMeasurer) -> None:
        self.measurer, self.own_variance = measurer, fsum(measurer.own.values())
        self.energies = _Predicted(measurer, dict.fromkeys(measurer.own, 1.0))
        self.shares = _Predicted(measurer, self._weights())

    def error(self, storage: int, number: int) -> float:
        """Return the error of a codec site, as a share of the gradient's own variance."""
        if not self.own_variance:
            return inf
        return max(self.energies.added[storage][number] / self.own_variance, self.shares.added[storage][number])

    def cases(self, error_budget: float) -> Iterator[_Case]:
        """Yield the cases to measure: classes of similar values with a usual code, and codecs that round to nearest.

        The latter are grouped by name, if a plan may use them. Cases with a negligible effect, and cases whose noise
        no kernel reads, so that it is known, are left out.
        """
        alike: dict[Hashable, dict[int, int]] = {}
        biased: dict[str, dict[int, int]] = {}
        for storage, sites in self.measurer.codec_sites.items():
            number = representative(sites)
            if sites[number].codec.draws:
                key = self.measurer.class_of(storage), sites[number].codec
                alike.setdefault(key, {})[storage] = number
            for n, site in enumerate(sites):
                is_biased = site.codec.fidelity == "approximate" and not site.codec.draws
                if is_biased and self.error(storage, n) <= error_budget:
                    biased.setdefault(site.codec.name, {})[storage] = n
        worth = [fsum(self.error(*key) for key in numbers.items()) for numbers in alike.values()]
        for numbers, site in zip(alike.values(), worth, strict=True):
            if site >= _WORTH_A_RUN * fsum(worth) and not self.measurer.paths.settled(numbers.items()):
                yield _Case(numbers)
        least = min(_NEGLIGIBLE, _WORTH_OF_BUDGET * error_budget)
        for numbers in biased.values():
            worth_it = fsum(self.error(*key) for key in numbers.items()) >= least
            if worth_it and not self.measurer.paths.settled(numbers.items()):
                yield _Case(numbers, is_alone=True, least=1.0)

    def scale(self, case: _Case) -> None:
        """Scale the predictions to the measured values."""
        self.energies.scale(case)
        self.shares.scale(case)

    def sensitivity(self) -> Sensitivity:
        """Return the sensitivity after all measurements."""
        codec_sites = {
            storage: tuple(self._judged(site, storage, number) for number, site in enumerate(sites))
            for storage, sites in self.measurer.codec_sites.items()
        }
        added = {storage: tuple(energies) for storage, energies in self.energies.added.items()}
        return Sensitivity(codec_sites, added, self.measurer.own, self.measurer.squared_gradient, self.measurer.paths)

    def _weights(self) -> dict[Source, float]:
        """Return the factors of the energy in each gradient for the mean share of an element's own variance."""
        count, own = sum(self.measurer.elements.values()), self.own_variance
        weights = {}
        for source, variance in self.measurer.own.items():
            each = max(variance / max(self.measurer.elements[source], 1), _LEAST_VARIANCE * own / max(count, 1))
            # if a gradient's own variance is not known, its noise counts as in the sum
            weights[source] = 1 / (count * each) if variance else (1 / own if own else 0.0)
        return weights

    def _judged(self, site: CodecSite, storage: int, number: int) -> CodecSite:
        """Return a codec site with its error: none if it is exact, infinite if its decoded value is not finite."""
        if site.codec.fidelity != "approximate":
            return site
        error = self.error(storage, number)
        return replace(site, error=error if isfinite(error) else inf)
