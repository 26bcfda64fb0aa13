"""Builds the step graph of a joint graph: finds storages, makes kernels, and marks those that may be recomputed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import fx

from ..kernels.checks import check
from .calls import is_random, operation_name
from .foreign_calls import is_effect
from .joint_graph import joint_outputs
from .step_graph import (
    HIDDEN_UPDATES,
    StepGraph,
    Storage,
    StorageKind,
    is_compute,
    storage_key,
    tensors_of,
    updated_buffers,
)
from .step_kernels import Anchor, BufferUpdate, ComputeKernel, DecisionCheck, Kernel, TangentArrival


@dataclass
class _Aliasing:
    """Finds the storage of each node's value."""

    storages: list[Storage] = field(default_factory=list)
    storage_of: dict[fx.Node, int] = field(default_factory=dict)
    by_key: dict[int, int] = field(default_factory=dict)

    def add(self, node: fx.Node, value: torch.Tensor, kind: StorageKind, name: str) -> int | None:
        """Return the new storage of a value, None when the value is a view of a known one."""
        key = storage_key(value)
        known = self.by_key.get(key)
        if known is None:
            self.by_key[key] = len(self.storages)
            self.storages.append(Storage(name, value.untyped_storage().nbytes(), kind, node))
        self.storage_of[node] = self.by_key[key]
        return None if known is not None else self.by_key[key]


def build_step_graph(graph: fx.GraphModule) -> StepGraph:
    """Return the step graph of a joint graph."""
    aliasing = _Aliasing()
    outputs, gradients, new_values = joint_outputs(graph)
    # Gradients belong to placeholders, and to outputs whose gradient the caller retains.
    node_of = {node.meta["source"]: node for node in graph.graph.nodes if "source" in node.meta}
    kernels: list[Kernel] = []
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            source = node.meta["source"]
            aliasing.add(node, node.meta["val"], source.kind, source.name)
        elif is_compute(node):
            kernel = _kernel(node, aliasing)
            if kernel is not None:
                kernels.append(kernel)
    updates = {node_of[source]: value for source, value in new_values.items()}
    forward = _add_anchors(_with_updates([k for k in kernels if k.phase == "forward"], updates, aliasing))
    arrival = TangentArrival(
        name="tangent",
        makes=tuple(i for i, s in enumerate(aliasing.storages) if s.kind == "tangent"),
        phase="backward",
        sequence=_FIRST_IN_BACKWARD,
        module="",
    )
    backward = [k for k in kernels if k.phase == "backward"]
    step = StepGraph(
        kernels=(*forward, arrival, *backward),
        storages=tuple(aliasing.storages),
        storage_of=aliasing.storage_of,
        outputs=outputs,
        gradients={node_of[source]: gradient for source, gradient in gradients.items()},
    )
    return _with_repeatability(step, {*updates, *(node for kernel in step.compute_kernels for node in kernel.updates)})


_FIRST_IN_BACKWARD = 2**62


def _kernel(node: fx.Node, aliasing: _Aliasing) -> Kernel | None:
    """Return the kernel of a call, None for a view."""
    reads = dict.fromkeys(aliasing.storage_of[n] for n in node.all_input_nodes if n in aliasing.storage_of)
    if node.target is check:
        return DecisionCheck(
            name=node.name,
            calls=(node,),
            reads=tuple(reads),
            phase=node.meta["phase"],
            sequence=node.meta["sequence"],
            module=node.meta["module"],
        )
    made = [aliasing.add(part, value, "activation", part.name) for part, value in tensors_of(node)]
    makes = tuple(storage for storage in made if storage is not None)
    updates = updated_buffers(node)
    random = is_random(node)
    if not makes and not updates and not random and not is_effect(node):
        return None
    return ComputeKernel(
        name=node.name,
        calls=(node,),
        reads=tuple(reads),
        makes=makes,
        phase=node.meta["phase"],
        sequence=node.meta["sequence"],
        module=node.meta["module"],
        random=random,
        repeatable=True,
        updates=updates,
    )


def _with_updates(forward: list[Kernel], updates: dict[fx.Node, fx.Node], aliasing: _Aliasing) -> list[Kernel]:
    """Write each changed buffer's new value back once it is made and its old value is read for the last time."""
    placed: dict[int, list[Kernel]] = {}
    for target, value in updates.items():
        new, old = aliasing.storage_of[value], aliasing.storage_of[target]
        after = max((i for i, k in enumerate(forward) if _settles(k, new, old, aliasing)), default=-1)
        near = forward[after]
        update = BufferUpdate(
            name=f"update_{target.name}",
            reads=tuple(dict.fromkeys((new, old))),
            phase="forward",
            sequence=near.sequence,
            module=near.module,
            target=target,
            value=value,
        )
        placed.setdefault(after, []).append(update)
    return [k for i, kernel in enumerate(forward) for k in (kernel, *placed.get(i, ()))]


def _settles(kernel: Kernel, new: int, old: int, aliasing: _Aliasing) -> bool:
    """Return whether, before this kernel has run, a buffer's new value is missing or its old one still to be read."""
    updates = kernel.updates if isinstance(kernel, ComputeKernel) else ()
    changes = any(aliasing.storage_of[node] == new for node in updates)
    return new in kernel.makes or changes or old in kernel.reads


def _add_anchors(forward: list[Kernel]) -> list[Kernel]:
    """Make each kernel that also updates buffers run in forward, though only backward or nothing may read its
    results.
    """
    kernels: list[Kernel] = []
    for kernel in forward:
        kernels.append(kernel)
        if isinstance(kernel, ComputeKernel) and kernel.updates and kernel.makes:
            anchor = Anchor(
                name=f"{Anchor.role}_{kernel.name}",
                reads=kernel.makes[-1:],
                phase="forward",
                sequence=kernel.sequence,
                module=kernel.module,
            )
            kernels.append(anchor)
    return kernels


# Sums whose order the number of threads decides, without a seed: a second run may give other bits.
_UNSEEDED = ("index_put", "_index_put_impl", "index_add", "scatter_add", "scatter_reduce", "put")

# Operations that leave gradients behind which backward multiplies in place.
_MADE_ONCE = ("linear_cross_entropy",)

# Batch normalization in training mode reads its running statistics only to make their new values: it may be
# recomputed after they were updated.
_READS_STATE_FOR_ITSELF = (
    *HIDDEN_UPDATES,
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update_functional",
)


def _with_repeatability(step: StepGraph, changed: set[fx.Node]) -> StepGraph:
    """Mark the kernels that may be recomputed.

    A kernel may not if it depends on a tangent, on a value changed since, or on the order of a sum. Nor may it if it
    makes nothing, or is known (`meta["repeats"]`) to give other bits the second time.
    """
    stale = {step.storage_of[node] for node in changed}
    tangent = {i for i, storage in enumerate(step.storages) if storage.kind == "tangent"}
    kernels = []
    for kernel in step.kernels:
        if not isinstance(kernel, ComputeKernel):
            kernels.append(kernel)
            continue
        names = {operation_name(call) for call in kernel.calls}
        dependent = any(read in tangent for read in kernel.reads)
        if dependent:
            tangent.update(kernel.makes)
        reads_stale = any(read in stale for read in kernel.reads) and not names & set(_READS_STATE_FOR_ITSELF)
        # Recomputed, a value would be the one from before the change.
        makes_stale = any(made in stale for made in kernel.makes)
        repeats = bool(kernel.makes) and all(call.meta.get("repeats", True) for call in kernel.calls)
        once = dependent or reads_stale or makes_stale or not repeats
        repeatable = not once and not names & {*_UNSEEDED, *_MADE_ONCE}
        kernels.append(replace(kernel, repeatable=repeatable))
    return step.with_kernels(kernels)
