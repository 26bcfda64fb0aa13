"""Adds the accumulation of finished gradients into `.grad` to the step graph: at the end of each block's backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from ...kernels.packing.bits import dense
from ..sources import Source
from ..step_graph import StepGraph, Storage
from ..step_kernels import GradAccumulate


@dataclass(frozen=True)
class AccumulateGrads:
    """Adds a kernel that accumulates each gradient into `.grad`, at the end of the block's backward that finishes it.

    before: gradient = aten.mm.default(g, x); ...
    after:  gradient = aten.mm.default(g, x); ...; weight.grad += gradient     # or: weight.grad = gradient

    Without a `.grad` autograd steals the tensor if it is laid out like the parameter and nothing else holds it.
    Otherwise autograd would clone it inside the engine, so it is cloned here, where the plan sees it.

    grad_present: the parameters and inputs that have a `.grad`, into which autograd adds in place.
    """

    name: ClassVar[str] = "accumulate_grads"
    fidelity: ClassVar[str] = "bitwise"
    grad_present: frozenset[Source] = frozenset()

    def __call__(self, step: StepGraph) -> StepGraph:
        storages = list(step.storages)
        ends = {kernel.block: i for i, kernel in enumerate(step.kernels) if kernel.phase == "backward"}
        block_of = _blocks_of_gradients(step)
        can_steal = _stealable(step, block_of, ends)
        accumulations: dict[int, list[GradAccumulate]] = {}
        for target, gradient in step.gradients.items():
            makes: tuple[int, ...] = ()
            if target.meta["source"] not in self.grad_present and target not in can_steal:
                size_bytes = target.meta["val"].numel() * target.meta["val"].element_size()
                makes = (len(storages),)
                storages.append(Storage(f"gradient_{target.name}", size_bytes, "activation", target))
            kernel = _accumulation(target, gradient, step.storage_of[gradient], makes, block_of[target])
            accumulations.setdefault(ends[kernel.block], []).append(kernel)
        kernels = [k for i, kernel in enumerate(step.kernels) for k in (kernel, *accumulations.get(i, ()))]
        return replace(step, kernels=tuple(kernels), storages=tuple(storages))


def _blocks_of_gradients(step: StepGraph) -> dict[fx.Node, int]:
    """Return by target the block whose backward finishes its gradient; the last one where no kernel makes it."""
    block_of = {storage: kernel.block for kernel in step.kernels for storage in (*kernel.makes, *kernel.writes)}
    last_block = len(step.block_names) - 1
    storages = {target: step.storage_of[gradient] for target, gradient in step.gradients.items()}
    return {
        target: block_of[storage] if step.storages[storage].kind == "activation" else last_block
        for target, storage in storages.items()
    }


def _stealable(step: StepGraph, block_of: Mapping[fx.Node, int], ends: Mapping[int, int]) -> set[fx.Node]:
    """Return the targets whose gradient autograd steals if they have no `.grad`.

    block_of: the block of each target.
    ends: the last kernel of each block's backward.
    """
    last_reader = {s: i for i, k in enumerate(step.kernels) for s in k.reads}
    # Two gradients in one storage (such as two views) would be added into twice, and a returned output is the caller's.
    taken = {step.storage_of[node] for node in step.outputs}
    stealable = set()
    for target, gradient in step.gradients.items():
        storage = step.storage_of[gradient]
        is_last_read = last_reader.get(storage, -1) <= ends[block_of[target]]
        own = storage not in taken and step.storages[storage].kind == "activation" and is_last_read
        fits = target.meta["source"].kind == "output" or _laid_out_alike(gradient.meta["val"], target.meta["val"])
        if own and fits:
            stealable.add(target)
        taken.add(storage)
    return stealable


def _accumulation(
    target: fx.Node, gradient: fx.Node, storage: int, makes: tuple[int, ...], block: int
) -> GradAccumulate:
    return GradAccumulate(
        name=f"accumulate_{target.name}",
        reads=(storage,),
        makes=makes,
        phase="backward",
        sequence=-1,
        module=target.meta["source"].name.rpartition(".")[0],
        block=block,
        target=target,
        gradient=gradient,
    )


def _laid_out_alike(gradient: torch.Tensor, target: torch.Tensor) -> bool:
    """Return whether autograd steals the gradient: its strides are the parameter's if those are dense, else it is
    contiguous.
    """
    if gradient.dtype != target.dtype:
        return False
    if dense(target):
        significant = [i for i, size in enumerate(target.shape) if size != 1]
        return all(gradient.stride(i) == target.stride(i) for i in significant)
    return gradient.is_contiguous()
