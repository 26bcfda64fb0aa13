"""Propagate the energy of noise in backward, from the kernels that read a code to the gradients of parameters.

Noise on a gradient has three kinds, which the layers below amplify differently:

    aligned     parallel to the gradient in each row (the last dimension), with one factor per row, as from a wrong
                deviation in a norm: a gradient lies along the directions that weights amplify most;
    fresh       the rest of the noise just added by a code, nearly white;
    travelled   the rest of the noise that has passed a kernel, which has turned it towards those directions.
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
_CHUNK = 1 << 18  # elements multiplied at once


@dataclass(frozen=True, slots=True)
class Flow:
    """The gain of noise from `source` to `target`: energy 1 becomes energy `gain`."""

    source: Place
    target: Place
    gain: float


@dataclass(frozen=True, slots=True)
class Noise:
    """The energy that a codec site of a storage, by number, adds to `target`."""

    storage: int
    number: int
    target: Place
    energy: float


@dataclass
class NoisePaths:
    """All flows and noises of a step, in the order of its kernels, and the nodes of finished gradients.

    Parts of noise are assumed independent, so that energies add up.
    """

    flows: list[Flow] = field(default_factory=list)
    noises: list[Noise] = field(default_factory=list)
    finals: list[tuple[fx.Node, Source]] = field(default_factory=list)

    def added(self, weights: Mapping[Source, float] | None = None) -> dict[tuple[int, int], float]:
        """Return the energy added to all gradients together, by storage and number of the codec site.

        weights: the factors of the energy in each gradient, 1 by default.
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
        """Return whether no kernel reads the noise of the chosen codec sites, each given as storage and number.

        The energy that they add is then the one measured where it was added.
        """
        chosen, read = set(chosen), {flow.source[0] for flow in self.flows}
        return not any(noise.target[0] in read for noise in self.noises if (noise.storage, noise.number) in chosen)

    def by_gradient(
        self, chosen: Iterable[tuple[int, int]], totals: Mapping[tuple[int, int], float]
    ) -> dict[Source, float]:
        """Return the energy in each gradient from the chosen codec sites, each given as storage and number.

        totals: the measured total of a codec site, to which its noise is scaled, instead of the one by `added`.
        """
        added, chosen = self.added(), set(chosen)
        scale = {key: totals.get(key, added[key]) / added[key] for key in chosen if added.get(key)}
        energy: dict[Place, float] = {}
        for noise in self.noises:
            if (noise.storage, noise.number) in scale:
                more = noise.energy * scale[noise.storage, noise.number]
                energy[noise.target] = energy.get(noise.target, 0.0) + more
        for flow in self.flows:
            if flow.source in energy:
                energy[flow.target] = energy.get(flow.target, 0.0) + flow.gain * energy[flow.source]
        by_source: dict[Source, float] = {}
        for node, source in self.finals:
            by_source[source] = by_source.get(source, 0.0) + sum(energy.get((node, kind), 0.0) for kind in _KINDS)
        return by_source


def squares_of_rows(gradient: torch.Tensor) -> torch.Tensor:
    """Return ‖row‖² of each row (the last dimension) of a gradient; the dimension is kept with size 1."""
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    return torch.linalg.vector_norm(gradient, dim=-1, keepdim=gradient.dim() > 0, dtype=dtype).square_()


def split(noise: torch.Tensor, gradient: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Return the factor of each row of a gradient that gives the part of the noise aligned with it.

    squares: the squares of the gradient's rows.
    Subtracts the aligned part from the noise, in place.
    """
    if gradient.dim() > 1:
        step = max(_CHUNK * len(gradient) // max(gradient.numel(), 1), 1)
        parts = zip(noise.split(step), gradient.split(step), strict=True)
        products = torch.cat(
            [
                (noise_part * gradient_part).sum(-1, keepdim=True, dtype=squares.dtype)
                for noise_part, gradient_part in parts
            ]
        )
    else:
        products = (noise * gradient).sum(-1, keepdim=gradient.dim() > 0, dtype=squares.dtype)
    share = torch.where(squares > 0, products / squares, 0.0)
    noise.addcmul_(share.to(gradient.dtype), gradient, value=-1)
    return share
