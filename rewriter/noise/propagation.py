"""Where noise goes in backward: from the kernels that read a code to the gradients of parameters, as energies.

Noise on a gradient is of three kinds, which the layers below do not treat alike:

    aligned     along the gradient, row by row (the last dimension), each row times a factor of its own, as where a
                norm's deviation is off: a gradient lies along the directions that weights let through most;
    fresh       the rest of what a code has just brought, nearly white;
    travelled   the rest of what has passed a kernel, which has turned it towards those directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from ...passes.sources import Source

Place = tuple[fx.Node, str]
"""A gradient and a kind of noise on it."""

_KINDS = ("aligned", "fresh", "travelled")
_CHUNK = 1 << 18  # elements that are multiplied at once


@dataclass(frozen=True, slots=True)
class Flow:
    """Where noise of energy 1 in `source` goes: energy `gain` in `target`."""

    source: Place
    target: Place
    gain: float


@dataclass(frozen=True, slots=True)
class Noise:
    """The energy that a coding of a storage, by number, brings into `target`."""

    storage: int
    number: int
    target: Place
    energy: float


@dataclass
class NoisePaths:
    """All flows and noises of a step, in the order of its kernels, and the nodes at which gradients are finished.

    Parts of noise are taken for independent, so that energies add up.
    """

    flows: list[Flow] = field(default_factory=list)
    noises: list[Noise] = field(default_factory=list)
    finals: list[tuple[fx.Node, Source]] = field(default_factory=list)

    def added(self, weights: Mapping[Source, float] | None = None) -> dict[tuple[int, int], float]:
        """By storage and number of its coding: the energy that it adds to all gradients together.

        weights: what the energy in each gradient is multiplied by, 1 if not given.
        """
        worth: dict[Place, float] = {}
        for node, source in self.finals:
            for kind in _KINDS:
                worth[node, kind] = worth.get((node, kind), 0.0) + (1.0 if weights is None else weights[source])
        for flow in reversed(self.flows):
            worth[flow.source] = worth.get(flow.source, 0.0) + flow.gain * worth.get(flow.target, 0.0)
        added: dict[tuple[int, int], float] = {}
        for noise in self.noises:
            key = noise.storage, noise.number
            added[key] = added.get(key, 0.0) + noise.energy * worth.get(noise.target, 0.0)
        return added

    def settled(self, chosen: Iterable[tuple[int, int]]) -> bool:
        """Whether no kernel reads what the codings chosen, each given as storage and number, make noisy.

        What they add is then what was measured where they brought it in.
        """
        chosen, read = set(chosen), {flow.source[0] for flow in self.flows}
        return not any(noise.target[0] in read for noise in self.noises if (noise.storage, noise.number) in chosen)

    def by_gradient(
        self, chosen: Iterable[tuple[int, int]], told: Mapping[tuple[int, int], float]
    ) -> dict[Source, float]:
        """The energy that each gradient has of the codings chosen, each given as storage and number.

        told: what each adds in all, where it is known better than `added` tells: its noise is scaled to that.
        """
        added, chosen = self.added(), set(chosen)
        scale = {key: told.get(key, added[key]) / added[key] for key in chosen if added.get(key)}
        energy: dict[Place, float] = {}
        for noise in self.noises:
            if (noise.storage, noise.number) in scale:
                more = noise.energy * scale[noise.storage, noise.number]
                energy[noise.target] = energy.get(noise.target, 0.0) + more
        for flow in self.flows:
            if flow.source in energy:
                energy[flow.target] = energy.get(flow.target, 0.0) + flow.gain * energy[flow.source]
        found: dict[Source, float] = {}
        for node, source in self.finals:
            found[source] = found.get(source, 0.0) + sum(energy.get((node, kind), 0.0) for kind in _KINDS)
        return found


def squares_of_rows(gradient: torch.Tensor) -> torch.Tensor:
    """‖row‖² of each row (the last dimension) of a gradient, which stays as a dimension of 1."""
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(gradient, dim=-1, keepdim=gradient.dim() > 0, dtype=dtype).square_()


def split(noise: torch.Tensor, gradient: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """By what each row of a gradient is multiplied for the part of the noise on it that is aligned with it.

    squares: of the gradient's rows. Takes that part off the noise, in place.
    """
    if gradient.dim() > 1:
        step = max(_CHUNK * len(gradient) // max(gradient.numel(), 1), 1)
        parts = zip(noise.split(step), gradient.split(step), strict=True)
        products = torch.cat([(one * other).sum(-1, keepdim=True, dtype=squares.dtype) for one, other in parts])
    else:
        products = (noise * gradient).sum(-1, keepdim=gradient.dim() > 0, dtype=squares.dtype)
    share = torch.where(squares > 0, products / squares, 0.0)
    noise.addcmul_(share.to(gradient.dtype), gradient, value=-1)
    return share
