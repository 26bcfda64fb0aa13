"""Where noise goes in backward: from the kernels that read a code to the gradients of parameters, as energies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx

from .sources import Source


@dataclass(frozen=True, slots=True)
class Flow:
    """Where noise of energy 1 in `source` goes: energy `gain` in `target`."""

    source: fx.Node
    target: fx.Node
    gain: float


@dataclass(frozen=True, slots=True)
class Noise:
    """The energy that a coding of a storage, by number, brings into `target`."""

    storage: int
    number: int
    target: fx.Node
    energy: float


@dataclass
class NoisePaths:
    """All flows and noises of a step, in the order of its kernels, and the nodes at which gradients are finished.

    Noise is white and its parts are independent, so that energies add up.
    """

    flows: list[Flow] = field(default_factory=list)
    noises: list[Noise] = field(default_factory=list)
    finals: list[tuple[fx.Node, Source]] = field(default_factory=list)

    def added(self) -> dict[tuple[int, int], float]:
        """By storage and number of its coding: the energy that it adds to all gradients together."""
        worth: dict[fx.Node, float] = {}
        for node, _ in self.finals:
            worth[node] = worth.get(node, 0.0) + 1.0
        for flow in reversed(self.flows):
            worth[flow.source] = worth.get(flow.source, 0.0) + flow.gain * worth.get(flow.target, 0.0)
        added: dict[tuple[int, int], float] = {}
        for noise in self.noises:
            key = noise.storage, noise.number
            added[key] = added.get(key, 0.0) + noise.energy * worth.get(noise.target, 0.0)
        return added

    def by_gradient(
        self, chosen: Iterable[tuple[int, int]], told: Mapping[tuple[int, int], float]
    ) -> dict[Source, float]:
        """The energy that each gradient has of the codings chosen, each given as storage and number.

        told: what each adds in all, where it is known better than `added` tells: its noise is scaled to that.
        """
        added, chosen = self.added(), set(chosen)
        scale = {key: told.get(key, added[key]) / added[key] for key in chosen if added.get(key)}
        energy: dict[fx.Node, float] = {}
        for noise in self.noises:
            if (noise.storage, noise.number) in scale:
                more = noise.energy * scale[noise.storage, noise.number]
                energy[noise.target] = energy.get(noise.target, 0.0) + more
        for flow in self.flows:
            if flow.source in energy:
                energy[flow.target] = energy.get(flow.target, 0.0) + flow.gain * energy[flow.source]
        found: dict[Source, float] = {}
        for node, source in self.finals:
            found[source] = found.get(source, 0.0) + energy.get(node, 0.0)
        return found
