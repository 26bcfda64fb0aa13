"""Measure kernels of backward while they run: the noise that codes add, and the gain of noise in each kernel."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import torch
from torch import fx

from ...kernels.codec import FittedCodec
from ...passes.compute_intensive import is_product
from ...passes.encodings.codec_sites import CodecSite
from ...passes.sources import Source
from ...passes.step_kernels import ComputeKernel, GradAccumulate, Kernel, TangentArrival
from ...solvers.problem.schedule import Schedule
from .gradient_variance import SampleSigns
from .perturbed_backward import CARRIED, Rerun, base_of, carried, energy_of
from .propagation import Flow, Noise, NoisePaths, split, squares_of_rows
from .replay import Replay

FEW = 32
"""The elements whose noise determines an energy within about a quarter; fewer are drawn several times."""

MEASURE_SEED = 0x10371DE
"""The seed of all draws while measuring, so that the same step gives the same plan."""

_APART = 1 << 32  # the distance between seeds of one value's draws, more than the number of storages
_SMALL_ERROR = 0.1  # squared and relative; a kernel's response to larger errors is not proportional


@dataclass
class NoiseMeasurer:
    """The measurements so far.

    coded: values of forward that have codecs, by node, with their storages, since backward may overwrite them.
    noise: the noise on live gradients, by kind; for aligned noise only the factor of each row.
    own: the variance of each gradient.
    elements: the number of elements of each gradient.
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
    _quantization_errors: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chance = torch.Generator(self.replay.device).manual_seed(MEASURE_SEED)

    def run(self, schedule: Schedule) -> None:
        """Run a schedule and measure; finished gradients are freed, unless they are read later."""
        number_of = {id(kernel): number for number, kernel in enumerate(self.replay.mapping.kernels)}
        for kernel, made in self.replay.run(schedule):
            if kernel.phase == "forward":
                self._see_forward(kernel, made)
            elif isinstance(kernel, TangentArrival):
                self.signs.see_tangents(made)
            elif isinstance(kernel, ComputeKernel):
                self._see(kernel, made)
            elif isinstance(kernel, GradAccumulate):
                self._see_gradient(kernel.gradient, kernel.target.meta["source"])
                self.replay.release(number_of[id(kernel)])

    def added(self, weights: Mapping[Source, float]) -> dict[int, list[float]]:
        """Return by storage the noise that each codec site adds to E‖ĝ − g‖², each gradient with a weight."""
        energies = self.paths.added(weights)
        return {
            storage: [energies.get((storage, number), 0.0) for number in range(len(sites))]
            for storage, sites in self.codec_sites.items()
        }

    def decoded(self, numbers: Mapping[int, int]) -> dict[int, Callable[[torch.Tensor], torch.Tensor]]:
        """Return by storage a function that encodes and decodes a value at the codec site of a number."""
        return {
            s: partial(self.codec_sites[s][number].round_trip, seed=MEASURE_SEED + s) for s, number in numbers.items()
        }

    def _see_forward(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        """Record values of forward that have codecs."""
        for node, value in made.items():
            storage = self.replay.step.storage_of[node]
            if storage in self.codec_sites and value.is_floating_point():
                self.coded[node] = storage
        self.signs.see_forward(kernel, made, self.replay)

    def _see(self, kernel: ComputeKernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        """Measure one kernel of backward that has run."""
        self.noise = {node: noise for node, noise in self.noise.items() if node in self.replay.made}
        operands = self.replay.operands(kernel)
        if any(node in self.noise or self._sites(node) for node in operands):
            _Measured(self, kernel, made).see(operands)
        self.signs.see(kernel, made, self.replay)

    def class_of(self, storage: int) -> Hashable:
        """Return the common key of similar values: the operation that makes them, their shape and dtype."""
        base = self.replay.step.storages[storage].base
        return base.target, base.meta["val"].shape, base.meta["val"].dtype

    def quantization_errors(self, storage: int, value: torch.Tensor) -> tuple[float, ...]:
        """Return ‖decoded − value‖² / ‖value‖² for each codec site.

        It is measured for each value: the ratio of errors at different numbers of bits depends on how many of its
        groups lie on their levels, which differs between layers.
        """
        sites = self.codec_sites[storage]
        if storage not in self._quantization_errors:
            energy = energy_of(value)
            if not energy:
                return (0.0,) * len(sites)
            squares = (
                energy_of(site.round_trip(value, MEASURE_SEED), value) if site.codec.draws else 0.0 for site in sites
            )
            self._quantization_errors[storage] = tuple(error / energy for error in squares)
        return self._quantization_errors[storage]

    def signs_of_rows(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return a random sign for each row of a gradient: noise of different rows is assumed independent."""
        shape = (*gradient.shape[:-1], 1) if gradient.dim() > 1 else gradient.shape
        drawn = torch.randint(0, 2, shape, generator=self._chance, device=gradient.device)
        return drawn.mul_(2).sub_(1).to(gradient.dtype)

    def _sites(self, node: fx.Node) -> tuple[CodecSite, ...]:
        return self.codec_sites[self.coded[node]] if node in self.coded else ()

    def _see_gradient(self, finished: fx.Node, source: Source) -> None:
        node = base_of(self.replay, finished)
        gradient = self.replay.value(finished)
        self.squared_gradient += energy_of(gradient)
        self.paths.finals.append((node, source))
        self.own[source] = self.own.get(source, 0.0) + self.signs.variance(node)
        self.elements[source] = gradient.numel()


class _Measured:
    """One kernel of backward that has run, and is rerun with other operands."""

    def __init__(self, measurer: NoiseMeasurer, kernel: ComputeKernel, made: Mapping[fx.Node, torch.Tensor]) -> None:
        self.measurer, self.kernel, self.made = measurer, kernel, made
        self.replay, self.paths = measurer.replay, measurer.paths
        self.rerun = Rerun(measurer.replay, kernel, made)
        self.squares = {node: squares_of_rows(tensor) for node, tensor in made.items() if tensor.is_floating_point()}
        self.few = [node for node in self.squares if 0 < made[node].numel() < FEW]

    def see(self, operands: Iterable[fx.Node]) -> None:
        """Measure the noise that codes of the operands add, and the gain of noise on the operands."""
        noisy = [node for node in operands if node in self.measurer.noise]
        arrived = {node: dict(self.measurer.noise[node]) for node in noisy}
        for node in operands:
            if node in self.measurer.coded:
                self._see_codes(node, self.measurer.coded[node])
        for node, noise in arrived.items():
            for kind, part in noise.items():
                self._see_gain(node, kind, part)

    def _see_codes(self, node: fx.Node, storage: int) -> None:
        measurer, value = self.measurer, self.replay.made[node]
        if any(isinstance(site.codec, FittedCodec) for site in measurer.codec_sites[storage]):
            gradient = self.replay.value(self.kernel.calls[0].all_input_nodes[0])
            measurer.codec_sites[storage] = tuple(
                site.fitted_to(value, gradient) for site in measurer.codec_sites[storage]
            )
        sites, quantization_errors = measurer.codec_sites[storage], measurer.quantization_errors(storage, value)
        for probe, *others in _probes(sites, quantization_errors, is_product(self.kernel)):
            scales = {
                probe: 1.0,
                **{
                    n: quantization_errors[n] / quantization_errors[probe] if quantization_errors[probe] else 0.0
                    for n in others
                },
            }
            draws = self._draws if sites[probe].codec.draws else 1
            for draw in range(draws):
                coded = sites[probe].round_trip(value, MEASURE_SEED + storage + draw * _APART)
                is_followed = probe == representative(sites) and not draw
                for target, kind, energy in self._energies({node: coded}, "fresh", draw, is_followed):
                    energy /= draws if target in self.few else 1
                    noises = (Noise(storage, n, (target, kind), energy * scale) for n, scale in scales.items())
                    self.paths.noises.extend(noises)

    def _see_gain(self, node: fx.Node, kind: str, noise: torch.Tensor) -> None:
        value = self.replay.made[node]
        for draw in range(self._draws):
            signed = noise * self.measurer.signs_of_rows(value) if draw else noise
            noisy = value.addcmul(value, signed.to(value.dtype)) if kind == "aligned" else carried(value, signed)
            arrived = energy_of(noisy, value)
            for target, into, energy in self._energies({node: noisy}, "travelled", draw, not draw) if arrived else ():
                gain = energy / arrived / (self._draws if target in self.few else 1)
                self.paths.flows.append(Flow((node, kind), (target, into), gain))

    def _energies(
        self, replacements: dict[fx.Node, torch.Tensor], rest: str, draw: int, is_followed: bool
    ) -> Iterator[tuple[fx.Node, str, float]]:
        """Yield the noise caused by other operands, by gradient and kind; after the first draw only for few elements.

        rest: the kind of the noise that is not aligned.
        is_followed: whether the noise is propagated further.
        """
        for target, deviation in self.rerun.differences(replacements):
            if draw and target not in self.few:
                continue
            share = split(deviation, self.made[target], self.squares[target])
            yield target, "aligned", energy_of(share * self.squares[target].sqrt())
            yield target, rest, energy_of(deviation)
            for kind, part in (("aligned", share), (rest, deviation)) if is_followed else ():
                by_kind = self.measurer.noise.setdefault(target, {})
                by_kind[kind] = (
                    by_kind[kind].add_(part) if kind in by_kind else part.to(CARRIED if kind == rest else None)
                )

    @property
    def _draws(self) -> int:
        """The number of draws of noise, enough for gradients with few elements."""
        return ceil(FEW / min((self.made[node].numel() for node in self.few), default=FEW))


def representative(codec_sites: Sequence[CodecSite]) -> int:
    """Return the number of the representative codec site: the middle one of those that round at random, if any."""
    family = next((site.codec.family for site in codec_sites if site.codec.draws), codec_sites[0].codec.family)
    numbers = [number for number, site in enumerate(codec_sites) if site.codec.family == family]
    return numbers[len(numbers) // 2]


def _probes(
    codec_sites: Sequence[CodecSite], quantization_errors: Sequence[float], is_intensive: bool
) -> list[list[int]]:
    """Return groups of codec sites: the first of each group is measured, and the others are scaled from it.

    The middle one represents its family: its noise is above the rounding of a product and still small. Sites with
    larger noise are measured themselves, unless the kernel is expensive, and so are those that round to nearest.
    """
    groups: list[list[int]] = []
    families: dict[str, list[int]] = {}
    for number, site in enumerate(codec_sites):
        if site.codec.fidelity == "approximate":
            if site.codec.draws:
                families.setdefault(site.codec.family, []).append(number)
            else:
                groups.append([number])
    for numbers in families.values():
        middle = numbers[len(numbers) // 2]
        alone = [] if is_intensive else [n for n in numbers if n != middle and quantization_errors[n] > _SMALL_ERROR]
        groups += [[middle, *(n for n in numbers if n != middle and n not in alone)], *([n] for n in alone)]
    return groups
