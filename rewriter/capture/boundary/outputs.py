"""The outputs of a step: returned tensors, tensors left in modules or arguments, and which receive gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from ....passes.sources import Source
from ...errors import CaptureError, NothingToDifferentiate
from ..autograd_graph import nodes_behind
from .left_behind import Stash
from .pytree import Structure, flatten


@dataclass(frozen=True)
class Arrivals:
    """The gradients for which a backward is planned, by names of outputs.

    gradients: outputs that receive a gradient.
    retained: intermediate outputs whose full gradient is requested (`retain_grad`).
    """

    gradients: frozenset[str]
    retained: frozenset[str] = frozenset()

    def __str__(self) -> str:
        text = ", ".join(sorted(name or "the output" for name in self.gradients))
        return text + (f" (and at {', '.join(sorted(self.retained))}, retained)" if self.retained else "")


@dataclass(frozen=True)
class Outputs:
    """The outputs of a step as one sequence of tensors: returned ones, then those of each stash, then changed inputs.

    returned: the structure of the returned value.
    changed: inputs that forward changes in place, so that gradients arrive through their new values.
    differentiable: tensors (by number) that may receive gradients.
    expected: those of them for whose gradients this step is planned.
    declined: tensors that could receive gradients in eager, but were declared not to.
    inside: differentiable and declined tensors from which other outputs are computed.
    retained: those of them whose full gradient is returned too.
    is_usual: whether the expected gradients are the most likely ones.
    first: for each tensor the first index of the same tensor; other fields name only the first.
    """

    returned: Structure
    stashes: tuple[Stash, ...] = ()
    changed: tuple[Source, ...] = ()
    differentiable: tuple[int, ...] = ()
    expected: tuple[int, ...] = ()
    declined: tuple[int, ...] = ()
    inside: tuple[int, ...] = ()
    retained: tuple[int, ...] = ()
    is_usual: bool = True
    first: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each tensor, e.g. "loss" or "hidden_states.3"; for a stash the attribute's name."""
        left = chain.from_iterable(stash.structure.names for stash in self.stashes)
        return (*self.returned.names, *left, *(f"argument {source.name}" for source in self.changed))

    @property
    def arrivals(self) -> Arrivals:
        """The gradients for which the step is planned."""
        names = self.names
        return Arrivals(frozenset(names[i] for i in self.expected), frozenset(names[i] for i in self.retained))

    def are_planned_for(self, arriving: Arrivals | None) -> bool:
        """Return whether the step is planned for these gradients; None means the most likely ones."""
        return self.is_usual if arriving is None else self.arrivals == arriving

    def left_before(self, modules: Mapping[str, torch.nn.Module]) -> Any:
        """Return the values that the previous step left in modules (by name) in the places of this step's stashes."""
        return [stash.held(modules) for stash in self.stashes]

    def deliver(self, tensors: Sequence[torch.Tensor], modules: Mapping[str, torch.nn.Module], arguments: Any) -> Any:
        """Return the value that forward returns, after storing the stashes in modules (by name) and arguments."""
        tensors = [tensors[i] for i in self.first]
        count = len(self.returned.names)
        for stash in self.stashes:
            size = len(stash.structure.names)
            stash.put(tensors[count : count + size], modules, arguments)
            count += size
        return self.returned.unflatten(tensors[: len(self.returned.names)])


def choose_outputs(
    returned: Any, left: Sequence[tuple[Stash, list[torch.Tensor]]], names: Sequence[str] | None
) -> tuple[list[torch.Tensor], Outputs]:
    """Return the tensors that forward returned and left behind, and their places.

    names: the requested outputs (all by default). Others become None, or are not left anywhere.
    Raises StructureError, CaptureError.
    """
    tensors, structure = flatten(returned, "output")
    outputs = Outputs(structure, tuple(stash for stash, _ in left))
    if names is None:
        return [*tensors, *chain.from_iterable(parts for _, parts in left)], outputs
    _check_names(names, outputs.names, "outputs")
    kept = [t if is_named(name, names) else None for name, t in zip(structure.names, tensors, strict=True)]
    tensors, structure = flatten(structure.unflatten(kept), "output")
    selected = [(stash, parts) for stash, parts in left if is_named(stash.name, names)]
    outputs = Outputs(structure, tuple(stash for stash, _ in selected))
    return [*tensors, *chain.from_iterable(parts for _, parts in selected)], outputs


def with_gradients(
    tensors: Sequence[torch.Tensor],
    outputs: Outputs,
    names: Sequence[str] | None,
    arriving: Arrivals | None,
) -> Outputs:
    """Return the outputs with those marked that receive gradients.

    names: outputs that may receive gradients (by default all that can).
    arriving: the gradients to plan for; by default all of `names`, else `loss` if it exists, else all returned ones.
    Raises CaptureError, NothingToDifferentiate.
    """
    output_names = outputs.names
    first = _first_places(tensors, len(tensors) - len(outputs.changed))
    has_gradient = (t.requires_grad and (t.is_floating_point() or t.is_complex()) for t in tensors)
    candidates = [i for i, requires in enumerate(has_gradient) if requires and first[i] == i]
    differentiable = candidates
    if names is not None:
        _check_names(names, output_names, "differentiable")
        named = {place for place, name in zip(first, output_names, strict=True) if is_named(name, names)}
        differentiable = [i for i in candidates if i in named]
    if not differentiable:
        raise NothingToDifferentiate(
            f"no output requires a gradient (the module returns {list(output_names)}): there is no backward to plan; "
            "check that parameters require gradients and that labels are passed"
        )
    returned = [i for i in differentiable if i < len(outputs.returned.names)]
    losses = [place for place, name in zip(first, outputs.returned.names, strict=False) if name == "loss"]
    usual = differentiable if names is not None else [i for i in returned if i in losses] or returned or differentiable
    expected = usual if arriving is None else [i for i in differentiable if output_names[i] in arriving.gradients]
    retained = [i for i in differentiable if arriving is not None and output_names[i] in arriving.retained]
    return replace(
        outputs,
        differentiable=tuple(differentiable),
        expected=tuple(expected),
        retained=tuple(retained),
        is_usual=expected == usual and not retained,
        declined=tuple(i for i in candidates if i not in differentiable),
        inside=tuple(_inside(tensors, candidates)),
        first=first,
    )


def _first_places(tensors: Sequence[torch.Tensor], count: int) -> tuple[int, ...]:
    """Return for each tensor the first index of the same tensor, among the first `count` tensors."""
    places: dict[int, int] = {}
    return tuple(places.setdefault(id(t), i) if i < count else i for i, t in enumerate(tensors))


def _inside(tensors: Sequence[torch.Tensor], candidates: Sequence[int]) -> Iterator[int]:
    """Yield the outputs from which other outputs are computed."""
    behind = {i: nodes_behind(tensors[i]) for i in candidates} if len(candidates) > 1 else {}
    for i in behind:
        node = tensors[i].grad_fn
        if node is not None and any(node in behind[j] for j in behind if j != i and tensors[j].grad_fn is not node):
            yield i


def is_named(name: str, requested: Sequence[str]) -> bool:
    """Return whether an output is one of those requested, or part of one."""
    return any(name == request or name.startswith(request + ".") for request in requested)


def _check_names(requested: Sequence[str], known: Sequence[str], option: str) -> None:
    for name in requested:
        if not any(is_named(known_name, [name]) for known_name in known):
            raise CaptureError(f"{option} names {name!r}, which the module does not return; it returns {list(known)}")
