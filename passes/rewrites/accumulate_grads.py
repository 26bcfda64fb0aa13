"""Adds the accumulation of finished gradients into `.grad` to the step graph: at the end of each block's backward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import fx

from ..sources import Source
from ..step_graph import Kernel, StepGraph, Storage, joint_outputs


def accumulate_grads(
    step: StepGraph, graph: fx.GraphModule, sources: Sequence[Source], grad_present: frozenset[Source]
) -> StepGraph:
    """Add an "accumulate" kernel for each gradient at the end of the backward segment in which it is final.

    sources: the parameters and inputs that the graph's gradients belong to.
    grad_present: those among them that have a `.grad`, into which autograd adds in place.

    Without a `.grad` autograd steals the tensor if it is laid out like the parameter and nothing else holds it.
    Otherwise
    it would be cloned inside the engine, so it is cloned here, where the plan sees it.
    """
    # Gradients belong to placeholders, and to outputs whose gradient the caller retains.
    targets = {n.meta["source"]: n for n in graph.graph.nodes if "source" in n.meta}
    storages = list(step.storages)
    block_of = {storage: kernel.block for kernel in step.kernels for storage in (*kernel.makes, *kernel.writes)}
    last_block = len(step.block_names) - 1
    last_reader = {s: i for i, k in enumerate(step.kernels) for s in k.reads}
    ends = {kernel.block: i for i, kernel in enumerate(step.kernels) if kernel.phase == "backward"}
    accumulations: dict[int, list[Kernel]] = {}
    # Two gradients in one storage (such as two views) would be added into twice, and a returned output is the caller's.
    taken = {step.storage_of[node] for node in step.outputs}
    for source, node in zip(sources, joint_outputs(graph)[1], strict=True):
        target = targets[source]
        storage = step.storage_of[node]
        block = block_of[storage] if step.storages[storage].kind == "activation" else last_block
        makes: tuple[int, ...] = ()
        shared = (
            storage in taken
            or step.storages[storage].kind != "activation"
            or last_reader.get(storage, -1) > ends[block]
        )
        fits = source.kind == "output" or _laid_out_alike(node.meta["val"], target.meta["val"])
        if source not in grad_present and (shared or not fits):
            size_bytes = target.meta["val"].numel() * target.meta["val"].element_size()
            storages.append(Storage(f"gradient_{target.name}", size_bytes, "activation", target))
            makes = (len(storages) - 1,)
        taken.add(storage)
        kernel = Kernel(
            name=f"accumulate_{target.name}",
            role="accumulate",
            calls=(node,),
            reads=(storage,),
            makes=makes,
            phase="backward",
            sequence=-1,
            module=source.name.rpartition(".")[0],
            repeatable=False,
            target=target,
            block=block,
        )
        accumulations.setdefault(ends[block], []).append(kernel)
    kernels = [k for i, kernel in enumerate(step.kernels) for k in (kernel, *accumulations.get(i, ()))]
    return replace(step, kernels=tuple(kernels), storages=tuple(storages))


def _laid_out_alike(gradient: torch.Tensor, target: torch.Tensor) -> bool:
    """Return whether autograd steals the gradient: its strides are the parameter's if those are dense, else it is
    contiguous.
    """
    if gradient.dtype != target.dtype:
        return False
    if _dense(target):
        significant = [i for i, size in enumerate(target.shape) if size != 1]
        return all(gradient.stride(i) == target.stride(i) for i in significant)
    return gradient.is_contiguous()


def _dense(tensor: torch.Tensor) -> bool:
    """Return whether the elements lie side by side without overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted((tensor.stride(i), n) for i, n in enumerate(tensor.shape) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True
