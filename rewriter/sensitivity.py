"""What noise in a value does to the gradient: measured in one forward and backward, for each value and each codec.

Backward is linear in what comes from the loss, so small noise travels through it independently of other noise. One run
of the step (`replay.Replay`) measures, at each kernel of backward,

    its gain: ‖f(g + n) − f(g)‖² / ‖n‖² for noise n of each kind (`noise_paths`) on each gradient g that it reads, and
    the noise of a code: ‖f(decode(encode(v))) − f(v)‖² for each value v of forward that it reads and that has codecs.

From the last kernel to the first, S(g) = Σ over readers of gain · S(what it makes) then says by how much noise of
energy 1 in g raises E‖ĝ − g‖² over all parameters, with S = 1 for the parameters' own gradients; and what a codec adds
is Σ over readers of noise · S. The noise that there is comes from one code of each value and is followed through
backward beside the exact gradients. No kernel of forward runs more often than the schedule says, and a kernel of
backward once more for each gradient and kind of noise, and for each codec that it reads; products (matrices,
convolutions, attention) are measured with one codec of each family, and its others are scaled by their squared errors.

Energies alone do not tell along which directions noise lies, nor where parts of it meet again: in trained networks what
is foretold so is half or twice of what is. So the step runs once more for each class of values that are alike (not for
each value), with the codes of all of them, and what each adds is scaled by what all together add. Codecs that round to
the nearest are biased: what they do adds up over samples and layers. So it runs once more for each of their names, too,
and there what each adds is never scaled down.

A coding's error is what it adds as a share of the variance that the gradient has anyway: of all gradients together, or
of each by itself in the mean over their elements, whichever is more. Adam and its like divide each element by its own
size, so that noise which is nothing in the sum may be all there is of some: attention's queries and keys have tiny
gradients for long. What the gradient has anyway `sample_signs` tells, from the same run.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import fsum, inf, isfinite

import torch
from torch import fx

from ..passes.encodings import Coding
from ..passes.pose import Posed
from ..passes.products import is_product
from ..passes.step_graph import Kernel, StepGraph
from ..solvers.schedule import Schedule
from .beside import energy_of
from .noise_paths import Flow, Noise, NoisePaths, split
from .replay import Instead, Replay
from .sample_signs import SampleSigns
from .sources import Source

_WORTH_A_RUN = 1e-3  # of what all codes add
_LEAST_VARIANCE = 1e-2  # of the average element's, that each is taken to have: some are nothing but rounding
SEED = 0x10371DE  # of what is drawn while measuring: the same step gives the same plan


@dataclass(frozen=True)
class Sensitivity:
    """codings: by storage, fitted to what was there, with their errors. added: for each of them what it adds to
    E‖ĝ − g‖². own_variance: of the gradient, from one batch to the next; squared_gradient: ‖g‖². paths: where the noise
    of each goes."""

    codings: Mapping[int, tuple[Coding, ...]]
    added: Mapping[int, tuple[float, ...]]
    own_variance: float
    squared_gradient: float
    paths: NoisePaths = field(default_factory=NoisePaths, repr=False)

    def by_gradient(self, chosen: Iterable[tuple[int, int]]) -> dict[Source, float]:
        """What codings, each given as storage and number, add to E‖ĝ − g‖² of each parameter's or input's gradient."""
        told = {(storage, number): one for storage, several in self.added.items() for number, one in enumerate(several)}
        return self.paths.by_gradient(chosen, told)

    def energy(self, chosen: Iterable[tuple[int, int]]) -> float:
        """What codings, each given as storage and number, add to E‖ĝ − g‖² of all gradients together."""
        return fsum(self.added[storage][number] for storage, number in chosen)


def sensitivity_of(
    step: StepGraph,
    posed: Posed,
    schedule: Schedule,
    tensors: Mapping[Source, torch.Tensor],
    codings: Mapping[int, tuple[Coding, ...]],
    batch: tuple[int, int],
    device: torch.device,
) -> Sensitivity:
    """Runs a schedule once and measures. batch: samples, and tokens of each (1 if it has none).

    The generator stands afterwards where it stood before; memory peaks above the schedule's by a few times what the
    largest kernel of backward holds.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.autocast(device.type, enabled=False), torch.random.fork_rng(devices=devices):
        torch.manual_seed(SEED)
        replay = Replay(step, posed, tensors, device)
        bench = _Bench(replay, dict(codings), SampleSigns(*batch, SEED, device))
        exact: list[torch.Tensor] = []
        for kernel, made in replay.run(schedule):
            if kernel.phase == "backward":
                bench.see(kernel, made)
            else:
                bench.see_forward(kernel, made)
            if kernel.role == "accumulate":
                exact.append(replay.value(kernel.calls[0]))
        weights = bench.weights()
        found = _Added(bench.added(), bench.added(weights), [weights[source] for _, source in bench.paths.finals])

        def scale(numbers: Mapping[int, int], alone: bool, least: float) -> None:
            again = Replay(step, posed, tensors, device)
            found.scale(numbers, _distances(again, schedule, bench, numbers, exact), alone, least)

        for alike in _classes(bench.codings, found.energies, step):
            scale(alike, False, 0.0)
        for name in bench.biased:
            named = {s: n for s, told in bench.codings.items() for n, one in enumerate(told) if one.codec.name == name}
            scale(named, True, 1.0)
    return bench.sensitivity(found)


@dataclass
class _Added:
    """By storage, for each of its codings: its energy in all gradients, and the same weighted.

    weights: of the gradients in turn (`_Bench.weights`).
    """

    energies: dict[int, list[float]]
    shares: dict[int, list[float]]
    weights: Sequence[float]

    def scale(self, numbers: Mapping[int, int], measured: Sequence[float], alone: bool, least: float) -> None:
        """Scales codings to what all `numbers` together were measured to add to each gradient, in turn.

        alone: only these, not all codings of their storages. least: the factor at least.
        """
        weighted = fsum(weight * one for weight, one in zip(self.weights, measured, strict=True))
        for told, whole in ((self.energies, fsum(measured)), (self.shares, weighted)):
            foretold = fsum(told[storage][number] for storage, number in numbers.items())
            factor = max(whole / foretold, least) if foretold else 1.0
            for storage, number in numbers.items():
                several = told[storage]
                told[storage] = [one * factor if not alone or n == number else one for n, one in enumerate(several)]


def _distances(
    replay: Replay, schedule: Schedule, bench: _Bench, numbers: Mapping[int, int], exact: Sequence[torch.Tensor]
) -> list[float]:
    """‖ĝ − g‖² of each gradient in turn, with all of some codings at once."""
    torch.manual_seed(SEED)
    squares: list[float] = []

    def coded(kernel: Kernel) -> Instead:
        if kernel.phase == "forward" or kernel.role != "compute":
            return {}
        chosen = {node: bench.coded[node] for node in replay.operands(kernel) if bench.coded.get(node) in numbers}
        return {node: bench.codings[s][numbers[s]].coded(replay.made[node], SEED + s) for node, s in chosen.items()}

    for kernel, _ in replay.run(schedule, coded):
        if kernel.role == "accumulate":
            squares.append(energy_of(replay.value(kernel.calls[0]) - exact[len(squares)]))
    return squares


@dataclass
class _Bench:
    """All that has been measured so far."""

    replay: Replay
    codings: dict[int, tuple[Coding, ...]]
    signs: SampleSigns
    paths: NoisePaths = field(default_factory=NoisePaths)
    noisy: set[fx.Node] = field(default_factory=set)
    coded: dict[fx.Node, int] = field(default_factory=dict)  # what forward made: backward may write over it
    errors: dict[int, tuple[float, ...]] = field(default_factory=dict)  # of each coding, squared, relative
    noise: dict[fx.Node, dict[str, torch.Tensor]] = field(default_factory=dict)  # by kind, on gradients that are alive
    squared_gradient: float = 0.0
    own: dict[Source, float] = field(default_factory=dict)  # variance of each gradient
    elements: dict[Source, int] = field(default_factory=dict)

    def see_forward(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        """Notes how far off each codec is on what forward made."""
        for node, value in made.items():
            storage = self.replay.step.storage_of[node]
            if storage in self.codings and value.is_floating_point():
                self.coded[node] = storage
                energy = energy_of(value)
                told = (energy_of(one.coded(value, SEED) - value) for one in self.codings[storage])
                self.errors[storage] = tuple(error / energy if energy else 0.0 for error in told)
        self.signs.see_forward(kernel, made, self.replay)

    def see(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        """Measures one kernel of backward, which has run."""
        if kernel.role == "accumulate":
            self._see_gradient(kernel)
        if kernel.role == "tangent":
            self.noisy.update(made)
        if kernel.role != "compute":
            return
        self.noise = {node: noise for node, noise in self.noise.items() if node in self.replay.made}
        operands = self.replay.operands(kernel)
        self._see_codes(kernel, made, operands)
        for node in operands:
            if node in self.noise:
                self._see_gain(kernel, made, node)
        if any(node in self.noisy or self._codings(node) for node in operands):
            self.noisy.update(node for node, value in made.items() if value.is_floating_point())
        summed = self.signs.summed
        self.signs.see(kernel, made, self.replay, [node for node in operands if node in self.noisy or node in summed])

    @property
    def biased(self) -> tuple[str, ...]:
        """The names of codecs that round to the nearest."""
        codecs = (one.codec for told in self.codings.values() for one in told)
        return tuple(dict.fromkeys(one.name for one in codecs if one.fidelity == "approximate" and not one.draws))

    @property
    def own_variance(self) -> float:
        """Of all gradients together."""
        return fsum(self.own.values())

    def weights(self) -> dict[Source, float]:
        """By what the energy in each gradient is multiplied for the share of an element's own variance, in the mean."""
        count = sum(self.elements.values())
        own, average = self.own_variance, self.own_variance / max(count, 1)
        weights = {}
        for source, variance in self.own.items():
            each = max(variance / max(self.elements[source], 1), _LEAST_VARIANCE * average)
            # where a gradient's own variance is not known, its noise counts as it does in the sum
            weights[source] = 1 / (count * each) if variance else (1 / own if own else 0.0)
        return weights

    def added(self, weights: Mapping[Source, float] | None = None) -> dict[int, list[float]]:
        """By storage, what each of its codings adds to E‖ĝ − g‖² as noise; weights: of gradients."""
        told = self.paths.added(weights)
        return {
            storage: [told.get((storage, number), 0.0) for number in range(len(several))]
            for storage, several in self.codings.items()
        }

    def sensitivity(self, found: _Added) -> Sensitivity:
        """What follows from all of it."""
        own = self.own_variance
        codings = {
            storage: tuple(
                _judged(one, max(added / own, share) if own else inf)
                for one, added, share in zip(several, found.energies[storage], found.shares[storage], strict=True)
            )
            for storage, several in self.codings.items()
        }
        added = {storage: tuple(told) for storage, told in found.energies.items()}
        return Sensitivity(codings, added, own, self.squared_gradient, self.paths)

    def _codings(self, node: fx.Node) -> tuple[Coding, ...]:
        return self.codings[self.coded[node]] if node in self.coded else ()

    def _see_gradient(self, kernel: Kernel) -> None:
        assert kernel.target is not None
        node = kernel.calls[0]
        gradient = self.replay.value(node)
        self.squared_gradient += energy_of(gradient)
        while node not in self.replay.made and node.all_input_nodes:
            node = node.all_input_nodes[0]
        source = kernel.target.meta["source"]
        self.paths.finals.append((node, source))
        self.own[source] = self.own.get(source, 0.0) + self.signs.variance(node)
        self.elements[source] = gradient.numel()

    def _see_gain(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor], node: fx.Node) -> None:
        value = self.replay.made[node]
        for kind, noise in self.noise[node].items():
            noisy = value + noise
            energy = energy_of(noisy - value)
            if energy:
                for target, off in self._differences(kernel, made, {node: noisy}):
                    for into, part in self._add_noise(target, off, made[target], "travelled").items():
                        self.paths.flows.append(Flow((node, kind), (target, into), energy_of(part) / energy))

    def _see_codes(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor], operands: Iterable[fx.Node]) -> None:
        for node in operands:
            storage = self.coded.get(node, -1)
            if any(one.codec.fit for one in self._codings(node)):
                value, gradient = self.replay.made[node], self.replay.value(kernel.calls[0].all_input_nodes[0])
                self.codings[storage] = tuple(one.fitted_to(value, gradient) for one in self.codings[storage])
            for numbers in _probes(self._codings(node), is_product(kernel)):
                probe = numbers[0]
                coded = self.codings[storage][probe].coded(self.replay.made[node], SEED + storage)
                errors = self.errors.get(storage) or (1.0,) * len(self.codings[storage])
                for target, off in self._differences(kernel, made, {node: coded}):
                    if probe == _usual(self.codings[storage]):
                        parts = self._add_noise(target, off, made[target], "fresh")
                    else:
                        parts = split(off, made[target], "fresh")
                    for kind, part in parts.items():
                        energy = energy_of(part)
                        for number in numbers:
                            scale = errors[number] / errors[probe] if errors[probe] else 0.0
                            self.paths.noises.append(Noise(storage, number, (target, kind), energy * scale))

    def _add_noise(
        self, node: fx.Node, noise: torch.Tensor, gradient: torch.Tensor, rest: str
    ) -> dict[str, torch.Tensor]:
        there = self.noise.setdefault(node, {})
        parts = split(noise, gradient, rest)
        for kind, part in parts.items():
            there[kind] = there[kind] + part if kind in there else part
        return parts

    def _differences(
        self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor], instead: Mapping[fx.Node, torch.Tensor]
    ) -> Iterator[tuple[fx.Node, torch.Tensor]]:
        """How far off a kernel's results are with other operands."""
        for node, value in self.replay.results(kernel, instead, again=True).items():
            if value.is_floating_point():
                yield node, value - made[node]


def _probes(codings: Sequence[Coding], is_intensive: bool) -> list[list[int]]:
    """Which codings are measured, each with those that are scaled from it: by family where a kernel is expensive."""
    if not is_intensive:
        return [[number] for number in range(len(codings))]
    families: dict[str, list[int]] = {}
    for number, coding in enumerate(codings):
        families.setdefault(coding.codec.family, []).append(number)
    # the middle one stands for the others: neither below the rounding of the product nor beyond small noise
    middles = {family: several[len(several) // 2] for family, several in families.items()}
    return [[middles[family], *(n for n in several if n != middles[family])] for family, several in families.items()]


def _usual(codings: Sequence[Coding]) -> int:
    """The number of the code whose noise stands for all: the middle one of those that round at random, if any do."""
    family = next((one.codec.family for one in codings if one.codec.draws), codings[0].codec.family)
    several = [number for number, one in enumerate(codings) if one.codec.family == family]
    return several[len(several) // 2]


def _classes(
    codings: Mapping[int, Sequence[Coding]], added: Mapping[int, Sequence[float]], step: StepGraph
) -> list[dict[int, int]]:
    """Values that are alike, by storage, each with its usual code: made by the same operation and of the same shape.

    Those that matter: whose usual codes together are foretold to add more than a share of what all do.
    """
    found: dict[Hashable, dict[int, int]] = {}
    for storage, several in codings.items():
        base, usual = step.storages[storage].base, _usual(several)
        if several[usual].codec.draws:
            found.setdefault((base.target, base.meta["val"].shape, several[usual].codec), {})[storage] = usual
    worth = [sum(added[storage][number] for storage, number in alike.items()) for alike in found.values()]
    return [alike for alike, one in zip(found.values(), worth, strict=True) if one >= _WORTH_A_RUN * sum(worth)]


def _judged(coding: Coding, error: float) -> Coding:
    """A coding with its error: none if it is exact, and an infinite one where what it gives back is not finite."""
    if coding.codec.fidelity != "approximate":
        return coding
    return replace(coding, error=error if isfinite(error) else inf)
