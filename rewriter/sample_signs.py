"""How much the gradient varies from one batch to the next, measured in one step on one batch.

The variance that the gradient has anyway, as an estimate from a batch of B samples, is measured where a kernel sums
over samples: with signs σ_b = ±1 that add up to 0 on what comes in, E‖Σ_b σ_b g_b‖² = B/(B−1) Σ_b ‖g_b − ḡ‖², which is
the variance of the sum of B samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from ..kernels.linear_cross_entropy import linear_cross_entropy
from ..passes.step_graph import Kernel
from .beside import energy_of
from .replay import Replay


class SampleSigns:
    """Balanced signs for the samples of a batch, and the sums over samples that they change.

    A gradient has a place for each sample if its first dimension is a multiple of their number; with one sample alone,
    each token counts as one. seed: of which samples get which sign.
    """

    def __init__(self, samples: int, tokens: int, seed: int, device: torch.device) -> None:
        self.samples = samples if samples > 1 else max(tokens, 1)
        half = self.samples // 2
        signs = torch.tensor([1.0] * half + [-1.0] * half + [0.0] * (self.samples % 2))
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        self.signs = signs[order].to(device)
        self.summed: dict[fx.Node, torch.Tensor] = {}

    def see(
        self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor], replay: Replay, gradients: Sequence[fx.Node]
    ) -> None:
        """Sums over samples with signs, where a kernel sums; follows such sums through what adds and scales them."""
        self.summed = {node: tensor for node, tensor in self.summed.items() if node in replay.made}
        if any(node in self.summed for node in gradients):
            sizes = {self.summed[node].numel() for node in gradients if node in self.summed}
            others = {n: torch.zeros_like(replay.made[n]) for n in gradients if replay.made[n].numel() in sizes}
            self.summed.update(replay.results(kernel, {**others, **self._known(gradients)}, again=True))
            return
        batched = [node for node in gradients if self._rows(replay.made[node])]
        sums = [n for n, value in made.items() if not any(_keeps_rows(value, replay.made[g]) for g in batched)]
        if batched and sums and self.samples > 1:
            signed = {node: self._signed(replay.made[node]) for node in batched}
            found = replay.results(kernel, signed, again=True)
            self.summed.update((node, found[node]) for node in sums if found[node].is_floating_point())

    def see_forward(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor], replay: Replay) -> None:
        """A fused loss makes gradients in forward: of the positive samples alone where the others' rows are ignored."""
        call = kernel.calls[-1] if kernel.role == "compute" else None
        if call is None or call.target is not linear_cross_entropy or self.samples < 2:
            return
        place, class_weight, reduction, ignored = call.args[3], call.args[4], call.args[5], call.args[6]
        assert isinstance(place, fx.Node)
        target = replay.value(place)
        if len(target) % self.samples:
            return
        positive = self.signs.repeat_interleave(len(target) // self.samples) > 0
        weight = (target != ignored).double()
        if isinstance(class_weight, fx.Node):
            weight *= replay.value(class_weight).double()[target.clamp(min=0)]
        share = float(weight[positive].sum() / weight.sum()) if reduction == 1 else 1.0
        halves = replay.results(kernel, {place: target.masked_fill(~positive, ignored)}, again=True)
        for node, whole in made.items():
            if node.args[1] in (2, 3) and whole.numel():  # the weight's and the bias's
                self.summed[node] = 2 * share * halves[node] - whole

    def variance(self, node: fx.Node) -> float:
        """Of a parameter's gradient; 0 where it is not known."""
        if node not in self.summed:
            return 0.0
        odd = self.samples / (self.samples - 1) if self.samples % 2 else 1.0
        return energy_of(self.summed[node]) * odd

    def _known(self, gradients: Sequence[fx.Node]) -> dict[fx.Node, torch.Tensor]:
        return {node: self.summed[node] for node in gradients if node in self.summed}

    def _rows(self, gradient: torch.Tensor) -> int:
        """How many rows of a gradient belong to each sample; 0 if it has no place for samples."""
        if gradient.dim() == 0:
            return 0
        rows = gradient.shape[0] if gradient.shape[0] > 1 or gradient.dim() == 1 else gradient.shape[1]
        return 0 if rows % self.samples else rows // self.samples

    def _signed(self, gradient: torch.Tensor) -> torch.Tensor:
        rows = self.signs.repeat_interleave(self._rows(gradient)).to(gradient.dtype)
        leading = gradient.dim() if gradient.shape[0] > 1 or gradient.dim() == 1 else gradient.dim() - 1
        return gradient * rows.view(-1, *[1] * (leading - 1))


def _keeps_rows(made: torch.Tensor, read: torch.Tensor) -> bool:
    """Whether a result still has a place for each sample."""
    return made.numel() == read.numel() or (made.dim() > 1 and made.shape[0] == read.shape[0])
