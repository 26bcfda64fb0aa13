"""Measure the variance of the gradient between batches, in one step on one batch.

The variance is estimated from a batch of B samples: with signs σ_b = ±1 that add up to 0 on the samples' losses,
E‖Σ_b σ_b g_b‖² = B/(B−1) Σ_b ‖g_b − ḡ‖², which is the variance of the sum of B samples. The first gradients of
backward that have a place for each sample receive the signs; later gradients are linear in these.
Terms of a loss that depend only on parameters (a penalty of their size) belong to no sample and do not vary.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from ...kernels.loss.linear_cross_entropy import linear_cross_entropy
from ...passes.step_graph import StepGraph
from ...passes.step_kernels import ComputeKernel, Kernel
from .perturbed_backward import CARRIED, energy_of
from .replay import Replay


class SampleSigns:
    """Balanced signs for the samples of a batch, and the gradient of their losses with these signs.

    A gradient has a place for each sample if its first dimension is a multiple of their number. If there is only one
    sample, each token counts as a sample.

    seed: the seed for the order of the signs.
    """

    def __init__(self, step: StepGraph, samples: int, tokens: int, seed: int, device: torch.device) -> None:
        self.samples = samples if samples > 1 else max(tokens, 1)
        half = self.samples // 2
        signs = torch.tensor([1.0] * half + [-1.0] * half + [0.0] * (self.samples % 2))
        order = torch.randperm(self.samples, generator=torch.Generator().manual_seed(seed))
        self.signs = signs[order].to(device)
        self.signed: dict[fx.Node, torch.Tensor] = {}
        self._gradients: set[fx.Node] = set()
        self._of_no_sample = _without_samples(step)

    def see_tangents(self, made: Mapping[fx.Node, torch.Tensor]) -> None:
        """Give signs to incoming gradients."""
        self._gradients.update(made)
        self._give_signs(made)

    def see(self, kernel: ComputeKernel, made: Mapping[fx.Node, torch.Tensor], replay: Replay) -> None:
        """Propagate signed gradients through a kernel of backward, or give signs to gradients that it makes."""
        self.signed = {node: tensor for node, tensor in self.signed.items() if node in replay.made}
        operands = replay.operands(kernel)
        with_signs = {n: self.signed[n].to(replay.made[n].dtype) for n in operands if n in self.signed}
        if not with_signs and not any(node in self._gradients for node in operands):
            return
        self._gradients.update(made)
        if not with_signs:
            if kernel.sequence not in self._of_no_sample:
                self._give_signs(made)
            return
        # an added gradient that belongs to no sample does not vary
        sizes = {tensor.numel() for tensor in with_signs.values()}
        others = (n for n in operands if n in self._gradients and n not in with_signs)
        replacements = {n: torch.zeros_like(replay.made[n]) for n in others if replay.made[n].numel() in sizes}
        results = replay.results(kernel, {**replacements, **with_signs}, is_rerun=True)
        self.signed.update((node, tensor.to(CARRIED)) for node, tensor in results.items() if tensor.is_floating_point())

    def see_forward(self, kernel: Kernel, made: Mapping[fx.Node, torch.Tensor], replay: Replay) -> None:
        """Handle a fused loss, which makes gradients in forward: rerun it with the rows of negative samples ignored."""
        if not isinstance(kernel, ComputeKernel) or self.samples < 2:
            return
        call = kernel.calls[-1]
        if call.target is not linear_cross_entropy:
            return
        target_node, class_weight, reduction, ignored = call.args[3], call.args[4], call.args[5], call.args[6]
        assert isinstance(target_node, fx.Node)
        target = replay.value(target_node)
        if len(target) % self.samples:
            return
        positive = self.signs.repeat_interleave(len(target) // self.samples) > 0
        weight = (target != ignored).double()
        if isinstance(class_weight, fx.Node):
            weight *= replay.value(class_weight).double()[target.clamp(min=0)]
        share = float(weight[positive].sum() / weight.sum()) if reduction == 1 else 1.0
        halves = replay.results(kernel, {target_node: target.masked_fill(~positive, ignored)}, is_rerun=True)
        for node, whole in made.items():
            if node.args[1] in (2, 3) and whole.numel():  # the gradients of weight and bias
                self.signed[node] = (2 * share * halves[node] - whole).to(CARRIED)

    def variance(self, node: fx.Node) -> float:
        """Return the variance of a parameter's gradient; 0 if it is not known."""
        if node not in self.signed:
            return 0.0
        odd = self.samples / (self.samples - 1) if self.samples % 2 else 1.0
        return energy_of(self.signed[node]) * odd

    def _give_signs(self, made: Mapping[fx.Node, torch.Tensor]) -> None:
        for node, gradient in made.items():
            rows = self._rows(gradient)
            if rows and self.samples > 1 and gradient.is_floating_point():
                leading = gradient.dim() if gradient.shape[0] > 1 or gradient.dim() == 1 else gradient.dim() - 1
                signs = self.signs.repeat_interleave(rows).view(-1, *[1] * (leading - 1))
                self.signed[node] = (gradient * signs.to(gradient.dtype)).to(CARRIED)

    def _rows(self, gradient: torch.Tensor) -> int:
        """Return the number of rows of a gradient for each sample; 0 if it has no place for samples."""
        if gradient.dim() == 0:
            return 0
        rows = gradient.shape[0] if gradient.shape[0] > 1 or gradient.dim() == 1 else gradient.shape[1]
        return 0 if rows % self.samples else rows // self.samples


def _without_samples(step: StepGraph) -> frozenset[int]:
    """Return autograd's numbers of forward operations that depend on no input."""
    varying = {number for number, storage in enumerate(step.storages) if storage.kind == "input"}
    numbers: dict[bool, set[int]] = {False: set(), True: set()}
    for kernel in step.compute_kernels:
        if kernel.phase == "forward":
            varies = not varying.isdisjoint(kernel.reads)
            varying.update(kernel.makes if varies else ())
            numbers[varies].add(kernel.sequence)
    return frozenset(numbers[False] - numbers[True])
