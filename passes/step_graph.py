"""The joint program of a training step with aliasing resolved: kernels, the storages they read and make, and roles."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import fx

from ..kernels.checks import check
from .calls import call_signature, is_random, operation_name
from .foreign_calls import is_effect
from .joint_graph import joint_outputs
from .step_text import step_text


@dataclass(frozen=True)
class Storage:
    """Bytes that exist as one allocation; views share them.

    kind: "parameter", "buffer", "input", "constant" or "tangent" for the step's inputs, "activation" for results of
        kernels.
    base: the node whose value owns the storage, from which views are taken.
    """

    name: str
    size_bytes: int
    kind: str
    base: fx.Node


@dataclass(frozen=True)
class Kernel:
    """One or more ATen calls that run as one operation.

    role: its role, one of these.
        "compute" runs its calls.
        "update" writes a buffer's new value into it (`target` is the buffer's placeholder).
        "tangent" stands for the arrival of the incoming gradients.
        "accumulate" accumulates a finished gradient into the `.grad` of `target`, a parameter or an input (it makes a
        storage where the gradient has to be cloned for that).
        "anchor" does nothing: it runs once in forward, so that its operand is made there.
        "check" verifies that decisions still are those of the capture (`kernels/checks.py`).
    calls: the first makes the storages, each further one works in place on the storage of the one before it.
    reads, makes: numbers of storages.
    phase: "forward" or "backward".
    sequence: autograd's number.
    updates: buffers, views of them, or values made in the step, which a compute kernel changes in place on its first
        run; recomputation does not pass them.
    writes: storages that it overwrites instead of making new ones.
    destination: the operand that lies in them.
    change: how the last call's result is written into the value that it is a changed copy of (`changes.Change`).
    reuses: the storage of that value, which the result takes if nothing reads it later; else it is copied first.
    """

    name: str
    role: str
    calls: tuple[fx.Node, ...]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    phase: str
    sequence: int
    module: str
    random: bool = False
    repeatable: bool = True
    target: fx.Node | None = None
    updates: tuple[fx.Node, ...] = ()
    writes: tuple[int, ...] = ()
    destination: fx.Node | None = None
    change: Any = None
    reuses: int | None = None
    block: int = 0

    @property
    def kind(self) -> str:
        """Return a text that is equal for kernels that are equal up to renaming."""
        role = self.role if self.change is None else "change"
        return " > ".join([role, *(call_signature(call) for call in self.calls if self.role == "compute")])

    @property
    def decisions(self) -> tuple[list[Any], list[Any], Any]:
        """Return the values that a "check" reads, the expected ones, and the copies that undo the step."""
        values, expected, undo = zip(*(call.args for call in self.calls), strict=True)
        return list(chain.from_iterable(values)), list(chain.from_iterable(expected)), undo[0]

    @property
    def measured_calls(self) -> tuple[fx.Node, ...]:
        """Return the calls that determine its cost."""
        return self.calls if self.change is None else (self.change.call,)


@dataclass(frozen=True)
class StepGraph:
    """All kernels in trace order, forward first.

    storage_of: for each node, the storage in which its value lies.
    overwrites: for each node that took the place of an operand, that operand.
    gradients: by parameter, input or output (one that retains its gradient), the gradient that it gets.
    savings: those of passes over the joint graph (`savings.Saving`).
    """

    kernels: tuple[Kernel, ...] = field(repr=False)
    storages: tuple[Storage, ...] = field(repr=False)
    storage_of: dict[fx.Node, int] = field(repr=False)
    outputs: tuple[fx.Node, ...]
    gradients: Mapping[fx.Node, fx.Node] = field(default_factory=dict, repr=False)
    overwrites: dict[fx.Node, fx.Node] = field(default_factory=dict, repr=False)
    savings: tuple[Any, ...] = ()
    block_names: tuple[str, ...] = ("step",)
    block_classes: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        return step_text(self)

    @cached_property
    def forward_length(self) -> int:
        """Return the number of kernels of forward."""
        return sum(kernel.phase == "forward" for kernel in self.kernels)

    def backward_readers(self, storage: int) -> list[Kernel]:
        """Return the kernels of backward that compute with a storage."""
        backward = self.kernels[self.forward_length :]
        return [kernel for kernel in backward if kernel.role == "compute" and storage in kernel.reads]

    def with_kernels(self, kernels: list[Kernel]) -> StepGraph:
        """Return the same step with other kernels."""
        return replace(self, kernels=tuple(kernels))


def storage_key(value: torch.Tensor) -> int:
    """Return a key that is equal for tensors that share an allocation."""
    return value.untyped_storage()._cdata


def is_compute(node: fx.Node) -> bool:
    """Return whether a node is an ATen call (not a placeholder, the choice of one of several outputs, or the
    output).
    """
    return node.op == "call_function" and node.target is not operator.getitem


def tensors_of(node: fx.Node) -> Iterator[tuple[fx.Node, torch.Tensor]]:
    """Yield the nodes for the tensors that a call returns, with their fake values."""
    value = node.meta["val"]
    if isinstance(value, torch.Tensor):
        yield node, value
    elif isinstance(value, (list, tuple)):
        for user in node.users:
            if user.target is operator.getitem and isinstance(user.meta["val"], torch.Tensor):
                yield user, user.meta["val"]


@dataclass
class _Aliasing:
    """Finds the storage of each node's value."""

    storages: list[Storage] = field(default_factory=list)
    storage_of: dict[fx.Node, int] = field(default_factory=dict)
    by_key: dict[int, int] = field(default_factory=dict)

    def add(self, node: fx.Node, value: torch.Tensor, kind: str, name: str) -> int | None:
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
    backward = [k for k in kernels if k.phase == "backward"]
    tangents = tuple(i for i, s in enumerate(aliasing.storages) if s.kind == "tangent")
    arrival = Kernel("tangent", "tangent", (), (), tangents, "backward", _FIRST_IN_BACKWARD, "", repeatable=False)
    step = StepGraph(
        kernels=(*forward, arrival, *backward),
        storages=tuple(aliasing.storages),
        storage_of=aliasing.storage_of,
        outputs=outputs,
        gradients={node_of[source]: gradient for source, gradient in gradients.items()},
    )
    return _with_repeatability(step, {*updates, *(node for kernel in kernels for node in kernel.updates)})


_FIRST_IN_BACKWARD = 2**62


def _kernel(node: fx.Node, aliasing: _Aliasing) -> Kernel | None:
    """Return the kernel of a call, None for a view."""
    reads = dict.fromkeys(aliasing.storage_of[n] for n in node.all_input_nodes if n in aliasing.storage_of)
    if node.target is check:
        return Kernel(
            name=node.name,
            role="check",
            calls=(node,),
            reads=tuple(reads),
            makes=(),
            phase=node.meta["phase"],
            sequence=node.meta["sequence"],
            module=node.meta["module"],
            repeatable=False,
        )
    made = [aliasing.add(part, value, "activation", part.name) for part, value in tensors_of(node)]
    makes = tuple(storage for storage in made if storage is not None)
    updates = updated_buffers(node)
    random = is_random(node)
    if not makes and not updates and not random and not is_effect(node):
        return None
    return Kernel(
        name=node.name,
        role="compute",
        calls=(node,),
        reads=tuple(reads),
        makes=makes,
        phase=node.meta["phase"],
        sequence=node.meta["sequence"],
        module=node.meta["module"],
        random=random,
        updates=updates,
    )


# Kernels that write their running statistics although their schema does not say so: the first of these arguments, and
# the argument that says whether they train.
_NORMALIZATIONS = ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm")
_HIDDEN_UPDATES = dict.fromkeys((*_NORMALIZATIONS, *(f"{name}_averaged" for name in _NORMALIZATIONS)), (3, 5))


def updated_buffers(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return the running statistics that a batch normalization in training mode updates.

    They are buffers, views of buffers, or values that forward made (instance normalization repeats its buffers for each
    sample).
    """
    if not is_compute(node):
        return ()
    name = operation_name(node)
    if name not in _HIDDEN_UPDATES:
        return ()
    first, training = _HIDDEN_UPDATES[name]
    if not node.args[training]:
        return ()
    return tuple(n for n in node.args[first : first + 2] if isinstance(n, fx.Node))


def _with_updates(forward: list[Kernel], updates: dict[fx.Node, fx.Node], aliasing: _Aliasing) -> list[Kernel]:
    """Write each changed buffer's new value back once it is made and its old value is read for the last time."""
    placed: dict[int, list[Kernel]] = {}
    for target, value in updates.items():
        new, old = aliasing.storage_of[value], aliasing.storage_of[target]
        after = max((i for i, k in enumerate(forward) if _settles(k, new, old, aliasing)), default=-1)
        near = forward[after]
        update = Kernel(
            name=f"update_{target.name}",
            role="update",
            calls=(value,),
            reads=tuple(dict.fromkeys((new, old))),
            makes=(),
            phase="forward",
            sequence=near.sequence,
            module=near.module,
            repeatable=False,
            target=target,
        )
        placed.setdefault(after, []).append(update)
    return [k for i, kernel in enumerate(forward) for k in (kernel, *placed.get(i, ()))]


def _settles(kernel: Kernel, new: int, old: int, aliasing: _Aliasing) -> bool:
    """Return whether, before this kernel has run, a buffer's new value is missing or its old one still to be read."""
    changes = any(aliasing.storage_of[node] == new for node in kernel.updates)
    return new in kernel.makes or changes or old in kernel.reads


def _add_anchors(forward: list[Kernel]) -> list[Kernel]:
    """Make each kernel that also updates buffers run in forward, though only backward or nothing may read its
    results.
    """
    kernels: list[Kernel] = []
    for kernel in forward:
        kernels.append(kernel)
        if kernel.updates and kernel.makes:
            kernels.append(
                replace(
                    kernel,
                    name=f"anchor_{kernel.name}",
                    role="anchor",
                    calls=(),
                    reads=kernel.makes[-1:],
                    makes=(),
                    repeatable=False,
                    updates=(),
                )
            )
    return kernels


# Sums whose order the number of threads decides, without a seed: a second run may give other bits.
_UNSEEDED = ("index_put", "_index_put_impl", "index_add", "scatter_add", "scatter_reduce", "put")

# Operations that leave gradients behind which backward multiplies in place.
_MADE_ONCE = ("linear_cross_entropy",)

# Batch normalization in training mode reads its running statistics only to make their new values: it may be
# recomputed after they were updated.
_READS_STATE_FOR_ITSELF = (
    *_HIDDEN_UPDATES,
    "_native_batch_norm_legit_functional",
    "_batch_norm_with_update_functional",
)


def _with_repeatability(step: StepGraph, changed: set[fx.Node]) -> StepGraph:
    """Mark the kernels that may be recomputed.

    A kernel may not if it depends on a tangent, on a value changed since, or on the order of a sum. Nor may it if it
    makes
    nothing, or is known (`meta["repeats"]`) to give other bits the second time.
    """
    stale = {step.storage_of[node] for node in changed}
    tangent = {i for i, storage in enumerate(step.storages) if storage.kind == "tangent"}
    kernels = []
    for kernel in step.kernels:
        if kernel.role != "compute":
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
