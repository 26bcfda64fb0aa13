"""What noise in a value does to the gradient: measured for each value and each codec in a few runs of a step.

Backward is linear in what comes from the loss, so small noise travels through it independently of other noise. One run
of the step (`replay.Replay`) measures, at each kernel of backward,

    its gain: ‖f(g + n) − f(g)‖² / ‖n‖² for noise n of each kind (`noise_paths`) on each gradient g that it reads, and
    the noise of a code: ‖f(decode(encode(v))) − f(v)‖² for each value v of forward that it reads and that has codecs.

From the last kernel to the first, S(g) = Σ over readers of gain · S(what it makes) then says by how much noise of
energy 1 in g raises E‖ĝ − g‖² over all parameters, with S = 1 for the parameters' own gradients; and what a codec adds
is Σ over readers of noise · S. The noise that there is comes from one code of each value and is followed through
backward beside the exact gradients. A kernel of backward runs once more for each gradient and kind of noise, and for
one codec of each family that it reads, whose others are scaled by their squared errors of the value itself. Where a
kernel is cheap codecs with large errors, which need not be in proportion, run themselves. What has few elements, a
scalar at most, is measured with as many draws as it takes to tell an energy (`noise_bench.FEW`).

Energies alone do not tell along which directions noise lies, nor where parts of it meet again: in trained networks what
is foretold so is half or twice of what is. So backward is followed once more (`beside`) for each class of values that
are alike, not for each value, with the codes of all of them, and what each adds is scaled by what all together add.
Where no kernel reads what they make noisy, as of inputs of weights' products, what they add has been measured already.
Codecs that round to the nearest are biased: what they do adds up over samples and layers. So it is followed once more
for each of their names, too, if what they add matters and a plan may have them, and there it is never scaled down.

A coding's error is what it adds as a share of the variance that the gradient has anyway: of all gradients together, or
of each by itself in the mean over their elements, whichever is more. Adam and its like divide each element by its own
size, so that noise which is nothing in the sum may be all there is of some: attention's queries and keys have tiny
gradients for long. What the gradient has anyway `sample_signs` tells, from the first run.
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
from .kernel_noise import FEW, SEED, NoiseMeasurer, usual
from .perturbed_backward import PerturbedRun, errors_alongside
from .propagation import NoisePaths
from .replay import Replay

_WORTH_A_LANE = 1e-3  # of what all codes add,
_WORTH_OF_BUDGET = 1e-2  # or of the error budget, and no more of the gradient's own variance than
_NEGLIGIBLE = 1e-4
_LANES = 4  # followed at once: each holds half of the bytes of the gradients on their way
_LEAST_VARIANCE = 1e-4  # of the average element's, that each is taken to have: some are nothing but rounding


@dataclass(frozen=True)
class Sensitivity:
    """codings: by storage, fitted to what was there, with their errors. added: for each of them what it adds to
    E‖ĝ − g‖². own: the variance of each parameter's or input's gradient, from one batch to the next; squared_gradient:
    ‖g‖². paths: where the noise of each goes."""

    codec_sites: Mapping[int, tuple[CodecSite, ...]]
    added: Mapping[int, tuple[float, ...]]
    own: Mapping[Source, float]
    squared_gradient: float
    paths: NoisePaths = field(default_factory=NoisePaths, repr=False)

    @property
    def own_variance(self) -> float:
        """Of all gradients together."""
        return fsum(self.own.values())

    def by_gradient(self, chosen: Iterable[tuple[int, int]]) -> dict[Source, float]:
        """What codings, each given as storage and number, add to E‖ĝ − g‖² of each parameter's or input's gradient."""
        told = {(storage, number): one for storage, several in self.added.items() for number, one in enumerate(several)}
        return self.paths.by_gradient(chosen, told)

    def energy(self, chosen: Iterable[tuple[int, int]]) -> float:
        """What codings, each given as storage and number, add to E‖ĝ − g‖² of all gradients together."""
        return fsum(self.added[storage][number] for storage, number in chosen)


def sensitivity_of(
    step: StepGraph,
    posed: ProblemMapping,
    schedule: Schedule,
    tensors: Mapping[Source, torch.Tensor],
    codec_sites: Mapping[int, tuple[CodecSite, ...]],
    batch: tuple[int, int],
    device: torch.device,
    error_budget: float = inf,
) -> Sensitivity:
    """Runs a schedule a few times and measures. batch: samples, and tokens of each (1 if it has none). error_budget: of
    a plan; codes that alone add more are left as they are foretold.

    The generator stands afterwards where it stood before; memory peaks above the schedule's by a few times what the
    largest kernel of backward holds.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices=devices):

        def replay() -> Replay:
            torch.manual_seed(SEED)
            return Replay(step, posed, tensors, device)

        bench = NoiseMeasurer(replay(), dict(codec_sites), SampleSigns(step, *batch, SEED, device))
        bench.run(schedule)
        found = _Found(bench)
        remaining = iter(cases := list(found.cases(error_budget)))
        while together := list(islice(remaining, _LANES)):
            perturbed_runs = [PerturbedRun(bench.decoded(case.numbers), range(len(posed.kernels))) for case in together]
            for source, _, squares in errors_alongside(replay(), schedule, perturbed_runs):
                for case, square in zip(together, squares, strict=True):
                    case.measured[source] = case.measured.get(source, 0.0) + square
        for case in cases:
            found.scale(case)
    return found.sensitivity()


@dataclass
class _Case:
    """Codings that are measured together: a number by storage.

    is_alone: whether they tell of themselves only, and not of all codings of their storages. least: by what that which
    was foretold is multiplied, at least. measured: what they add to each gradient.
    """

    numbers: Mapping[int, int]
    is_alone: bool = False
    least: float = 0.0
    measured: dict[Source, float] = field(default_factory=dict)


class _Predicted:
    """By storage, what each of its codings adds to all gradients, each gradient with a weight.

    certain: to those alone that have so many elements that a single draw tells how much it is.
    """

    def __init__(self, bench: NoiseMeasurer, weights: Mapping[Source, float]) -> None:
        self._weights = {source: one if bench.elements[source] >= FEW else 0.0 for source, one in weights.items()}
        self.added, self._certain = bench.added(weights), bench.added(self._weights)

    def scale(self, case: _Case) -> None:
        """Scales what was foretold to what the codings of a case were measured to add together."""
        whole = fsum(self._weights[source] * energy for source, energy in case.measured.items())
        foretold = fsum(self._certain[storage][number] for storage, number in case.numbers.items())
        factor = max(whole / foretold, case.least) if foretold else 1.0
        for told in (self.added, self._certain):
            for storage, number in case.numbers.items():
                scaled = enumerate(told[storage])
                told[storage] = [one if case.is_alone and n != number else one * factor for n, one in scaled]


class _Found:
    """What a run has foretold, and is then scaled.

    energies: by storage, what each coding adds to all gradients together; shares: of an element's own variance, in the
    mean.
    """

    def __init__(self, bench: NoiseMeasurer) -> None:
        self.bench, self.own_variance = bench, fsum(bench.own.values())
        self.energies = _Predicted(bench, dict.fromkeys(bench.own, 1.0))
        self.shares = _Predicted(bench, self._weights())

    def error(self, storage: int, number: int) -> float:
        """Of a coding, as a share of the variance that the gradient has anyway."""
        if not self.own_variance:
            return inf
        return max(self.energies.added[storage][number] / self.own_variance, self.shares.added[storage][number])

    def cases(self, error_budget: float) -> Iterator[_Case]:
        """What is to be measured: classes of values that are alike, each with its usual code; and codecs that round to
        the nearest, by name, where a plan may have them. Left out is what matters too little, and what no kernel reads,
        so that it is known."""
        alike: dict[Hashable, dict[int, int]] = {}
        biased: dict[str, dict[int, int]] = {}
        for storage, several in self.bench.codec_sites.items():
            number = usual(several)
            if several[number].codec.draws:
                key = self.bench.class_of(storage), several[number].codec
                alike.setdefault(key, {})[storage] = number
            for n, one in enumerate(several):
                is_biased = one.codec.fidelity == "approximate" and not one.codec.draws
                if is_biased and self.error(storage, n) <= error_budget:
                    biased.setdefault(one.codec.name, {})[storage] = n
        worth = [fsum(self.error(*key) for key in numbers.items()) for numbers in alike.values()]
        for numbers, one in zip(alike.values(), worth, strict=True):
            if one >= _WORTH_A_LANE * fsum(worth) and not self.bench.paths.settled(numbers.items()):
                yield _Case(numbers)
        least = min(_NEGLIGIBLE, _WORTH_OF_BUDGET * error_budget)
        for numbers in biased.values():
            worth_it = fsum(self.error(*key) for key in numbers.items()) >= least
            if worth_it and not self.bench.paths.settled(numbers.items()):
                yield _Case(numbers, is_alone=True, least=1.0)

    def scale(self, case: _Case) -> None:
        """Scales what was foretold to what was measured."""
        self.energies.scale(case)
        self.shares.scale(case)

    def sensitivity(self) -> Sensitivity:
        """What follows from all of it."""
        codec_sites = {
            storage: tuple(self._judged(one, storage, number) for number, one in enumerate(several))
            for storage, several in self.bench.codec_sites.items()
        }
        added = {storage: tuple(told) for storage, told in self.energies.added.items()}
        return Sensitivity(codec_sites, added, self.bench.own, self.bench.squared_gradient, self.bench.paths)

    def _weights(self) -> dict[Source, float]:
        """By what the energy in each gradient is multiplied for the share of an element's own variance, in the mean."""
        count, own = sum(self.bench.elements.values()), self.own_variance
        weights = {}
        for source, variance in self.bench.own.items():
            each = max(variance / max(self.bench.elements[source], 1), _LEAST_VARIANCE * own / max(count, 1))
            # where a gradient's own variance is not known, its noise counts as it does in the sum
            weights[source] = 1 / (count * each) if variance else (1 / own if own else 0.0)
        return weights

    def _judged(self, coding: CodecSite, storage: int, number: int) -> CodecSite:
        """A coding with its error: none if it is exact, and an infinite one where what it gives back is not finite."""
        if coding.codec.fidelity != "approximate":
            return coding
        error = self.error(storage, number)
        return replace(coding, error=error if isfinite(error) else inf)
