"""Measures kernels of backward as they run: what noise codes bring in, and what becomes of noise on its way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import torch
from torch import fx

from ...passes.compute_intensive import is_product
from ...passes.encodings.codec_sites import CodecSite
from ...passes.sources import Source
from ...passes.step_graph import Kernel
from ...solvers.problem.schedule import Schedule
from .gradient_variance import SampleSigns
from .perturbed_backward import CARRIED, Again, base_of, carried, energy_of
from .propagation import Flow, Noise, NoisePaths, split, squares_of_rows
from .replay import Replay

FEW = 32
"""Numbers whose noise tells an energy within about a quarter; fewer are drawn several times."""

SEED = 0x10371DE
"""Of what is drawn while measuring: the same step gives the same plan."""

_APART = 1 << 32  # seeds of one value's draws: further apart than storages
_SMALL_ERROR = 0.1  # squared, relative: what a kernel makes of larger ones is not in proportion to them


@dataclass
class NoiseMeasurer:
    """All that has been measured so far.

    coded: what forward made, by node, with its storage: backward may write over it. noise: by kind, on gradients that
    are alive; of what is aligned only by what each row is multiplied. own: the variance of each gradient.
    """

    replay: Replay
    codec_sites: dict[int, tuple[CodecSite, ...]]
    signs: SampleSigns
    paths: NoisePaths = field(default_factory=NoisePaths)
    coded: dict[fx.Node, int] = field(default_factory=dict)
    noise: dict[fx.Node, dict[str, torch.Tensor]] = field(default_factory=dict)
    squared_gradient: float = 0.0
    own: dict[Source, float] = field(default_factory=dict)
    elements: dict[Source, int] = field(default_factory=dict)
    _errors: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chance = torch.Generator(self.replay.device).manual_seed(SEED)

    def run(self, schedule: Schedule) -> None:
        """Runs a schedule and measures; gradients that are done are freed, unless they are read later."""
        number_of = {id(kernel): number for number, kernel in enumerate(self.replay.posed.kernels)}
        for kernel, made in self.replay.run(schedule):
            if kernel.phase == "forward":
                self._see_forward(kernel, made)
            elif kernel.role == "tangent":
                self.signs.see_tangents(made)
            elif kernel.role == "compute":
                self._see(kernel, made)
            elif kernel.role == "accumulate" and kernel.target is not None:
                self._see_gradient(kernel, kernel.target.meta["source"])
                self.replay.release(number_of[id(kernel)])

    def added(self, weights: Mapping[Source, float]) -> dict[int, list[float]]:
        """By storage, what each of its codings adds to E‖ĝ − g‖² as noise, each gradient with a weight."""
        told = self.paths.added(weights)
        return {
            storage: [told.get((storage, number), 0.0) for number in range(len(several))]
            for storage, several in self.codec_sites.items()
        }

    def decoded(self, numbers: Mapping[int, int]) -> dict[int, Callable[[torch.Tensor], torch.Tensor]]:
        """What makes of values what codings, a number by storage, give back."""
        return {s: partial(self.codec_sites[s][number].coded, seed=SEED + s) for s, number in numbers.items()}

    def _see_forward(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        """Notes what forward made that has codecs."""
        for node, value in made.items():
            storage = self.replay.step.storage_of[node]
            if storage in self.codec_sites and value.is_floating_point():
                self.coded[node] = storage
        self.signs.see_forward(kernel, made, self.replay)

    def _see(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        """Measures one kernel of backward, which has run."""
        self.noise = {node: noise for node, noise in self.noise.items() if node in self.replay.made}
        operands = self.replay.operands(kernel)
        if any(node in self.noise or self._codings(node) for node in operands):
            _Measured(self, kernel, made).see(operands)
        self.signs.see(kernel, made, self.replay)

    def class_of(self, storage: int) -> Hashable:
        """What values that are alike have in common: the operation that makes them, and their shape."""
        base = self.replay.step.storages[storage].base
        return base.target, base.meta["val"].shape, base.meta["val"].dtype

    def errors(self, storage: int, value: torch.Tensor) -> tuple[float, ...]:
        """‖decoded − value‖² / ‖value‖² of each coding.

        Of each value by itself: how errors at different numbers of bits relate depends on how many of its groups lie on
        their levels, and that differs between layers.
        """
        several = self.codec_sites[storage]
        if storage not in self._errors:
            energy = energy_of(value)
            if not energy:
                return (0.0,) * len(several)
            told = (energy_of(one.coded(value, SEED), value) if one.codec.draws else 0.0 for one in several)
            self._errors[storage] = tuple(error / energy for error in told)
        return self._errors[storage]

    def signs_of_rows(self, gradient: torch.Tensor) -> torch.Tensor:
        """A random sign for each row of a gradient: noise of other rows is taken for independent."""
        shape = (*gradient.shape[:-1], 1) if gradient.dim() > 1 else gradient.shape
        drawn = torch.randint(0, 2, shape, generator=self._chance, device=gradient.device)
        return drawn.mul_(2).sub_(1).to(gradient.dtype)

    def _codings(self, node: fx.Node) -> tuple[CodecSite, ...]:
        return self.codec_sites[self.coded[node]] if node in self.coded else ()

    def _see_gradient(self, kernel: Kernel, source: Source) -> None:
        node = base_of(self.replay, kernel.calls[0])
        gradient = self.replay.value(kernel.calls[0])
        self.squared_gradient += energy_of(gradient)
        self.paths.finals.append((node, source))
        self.own[source] = self.own.get(source, 0.0) + self.signs.variance(node)
        self.elements[source] = gradient.numel()


class _Measured:
    """One kernel of backward, which has run, and runs again with other operands."""

    def __init__(self, bench: NoiseMeasurer, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        self.bench, self.kernel, self.made = bench, kernel, made
        self.replay, self.paths = bench.replay, bench.paths
        self.again = Again(bench.replay, kernel, made)
        self.squares = {node: squares_of_rows(tensor) for node, tensor in made.items() if tensor.is_floating_point()}
        self.few = [node for node in self.squares if 0 < made[node].numel() < FEW]

    def see(self, operands: Iterable[fx.Node]) -> None:
        """Measures what codes of the operands bring in and what becomes of noise on them."""
        noisy = [node for node in operands if node in self.bench.noise]
        arrived = {node: dict(self.bench.noise[node]) for node in noisy}
        for node in operands:
            if node in self.bench.coded:
                self._see_codes(node, self.bench.coded[node])
        for node, noise in arrived.items():
            for kind, one in noise.items():
                self._see_gain(node, kind, one)

    def _see_codes(self, node: fx.Node, storage: int) -> None:
        bench, value = self.bench, self.replay.made[node]
        if any(one.codec.fit for one in bench.codec_sites[storage]):
            gradient = self.replay.value(self.kernel.calls[0].all_input_nodes[0])
            bench.codec_sites[storage] = tuple(one.fitted_to(value, gradient) for one in bench.codec_sites[storage])
        several, errors = bench.codec_sites[storage], bench.errors(storage, value)
        for probe, *others in _probes(several, errors, is_product(self.kernel)):
            scales = {probe: 1.0, **{n: errors[n] / errors[probe] if errors[probe] else 0.0 for n in others}}
            draws = self._draws if several[probe].codec.draws else 1
            for draw in range(draws):
                coded = several[probe].coded(value, SEED + storage + draw * _APART)
                is_kept = probe == usual(several) and not draw
                for target, kind, energy in self._energies({node: coded}, "fresh", draw, is_kept):
                    energy /= draws if target in self.few else 1
                    told = (Noise(storage, n, (target, kind), energy * scale) for n, scale in scales.items())
                    self.paths.noises.extend(told)

    def _see_gain(self, node: fx.Node, kind: str, noise: torch.Tensor) -> None:
        value = self.replay.made[node]
        for draw in range(self._draws):
            signed = noise * self.bench.signs_of_rows(value) if draw else noise
            noisy = value.addcmul(value, signed.to(value.dtype)) if kind == "aligned" else carried(value, signed)
            arrived = energy_of(noisy, value)
            for target, into, energy in self._energies({node: noisy}, "travelled", draw, not draw) if arrived else ():
                gain = energy / arrived / (self._draws if target in self.few else 1)
                self.paths.flows.append(Flow((node, kind), (target, into), gain))

    def _energies(
        self, instead: dict[fx.Node, torch.Tensor], rest: str, draw: int, is_kept: bool
    ) -> Iterator[tuple[fx.Node, str, float]]:
        """The noise that other operands make, by gradient and kind; after the first draw of those that are few.

        rest: the kind of what is not aligned. is_kept: whether it is followed.
        """
        for target, off in self.again.differences(instead):
            if draw and target not in self.few:
                continue
            share = split(off, self.made[target], self.squares[target])
            yield target, "aligned", energy_of(share * self.squares[target].sqrt())
            yield target, rest, energy_of(off)
            for kind, part in (("aligned", share), (rest, off)) if is_kept else ():
                there = self.bench.noise.setdefault(target, {})
                there[kind] = there[kind].add_(part) if kind in there else part.to(CARRIED if kind == rest else None)

    @property
    def _draws(self) -> int:
        """How often noise is drawn, so that what it does to few elements shows."""
        return ceil(FEW / min((self.made[node].numel() for node in self.few), default=FEW))


def usual(codec_sites: Sequence[CodecSite]) -> int:
    """The number of the code whose noise stands for all: the middle one of those that round at random, if any do."""
    family = next((one.codec.family for one in codec_sites if one.codec.draws), codec_sites[0].codec.family)
    several = [number for number, one in enumerate(codec_sites) if one.codec.family == family]
    return several[len(several) // 2]


def _probes(codec_sites: Sequence[CodecSite], errors: Sequence[float], is_intensive: bool) -> list[list[int]]:
    """Which codings are measured, each with those of its family that are scaled from it.

    The middle one stands for the others: neither below the rounding of a product nor beyond small noise. Where noise is
    not small each stands for itself, unless a kernel is expensive; so do those that round to the nearest.
    """
    found: list[list[int]] = []
    families: dict[str, list[int]] = {}
    for number, coding in enumerate(codec_sites):
        if coding.codec.fidelity == "approximate":
            if coding.codec.draws:
                families.setdefault(coding.codec.family, []).append(number)
            else:
                found.append([number])
    for several in families.values():
        middle = several[len(several) // 2]
        alone = [] if is_intensive else [n for n in several if n != middle and errors[n] > _SMALL_ERROR]
        found += [[middle, *(n for n in several if n != middle and n not in alone)], *([n] for n in alone)]
    return found
