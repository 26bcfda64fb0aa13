"""What a step gives: returned tensors and those left in modules or arguments, and which of them receive gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

from ....passes.sources import Source
from ...errors import CaptureError, NothingToDifferentiate
from ..torch_internals import nodes_behind
from .left_behind import Stash
from .pytree import Structure, flatten


@dataclass(frozen=True)
class Arrivals:
    """What a backward is planned for, by names of outputs. gradients: which of them receive one. retained: outputs
    inside the step whose whole gradient is asked for (`retain_grad`)."""

    gradients: frozenset[str]
    retained: frozenset[str] = frozenset()

    def __str__(self) -> str:
        text = ", ".join(sorted(name or "the output" for name in self.gradients))
        return text + (f" (and at {', '.join(sorted(self.retained))}, retained)" if self.retained else "")


@dataclass(frozen=True)
class Outputs:
    """What a step gives, as one row of tensors: those that forward returns, then those of each stash, then inputs.

    returned: the structure of what forward returns. changed: inputs that forward changes in place so that gradients
    arrive through what they hold then. able: which tensors (by number) may receive gradients; expected:
    which of them this step is planned for; declined: which would in eager, but were declared not to. inside: able and
    declined ones from which others are computed; retained: those of them whose whole gradient is handed over too.
    is_usual: whether those expected are those that most likely come. first: for each tensor the first place of the very
    same one, which stands for all of them in the rest.
    """

    returned: Structure
    stashes: tuple[Stash, ...] = ()
    changed: tuple[Source, ...] = ()
    able: tuple[int, ...] = ()
    expected: tuple[int, ...] = ()
    declined: tuple[int, ...] = ()
    inside: tuple[int, ...] = ()
    retained: tuple[int, ...] = ()
    is_usual: bool = True
    first: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Where each tensor stands, e.g. "loss" or "hidden_states.3"; of a stash the attribute's name."""
        left = chain.from_iterable(stash.structure.names for stash in self.stashes)
        return (*self.returned.names, *left, *(f"argument {source.name}" for source in self.changed))

    @property
    def arrivals(self) -> Arrivals:
        """What the step is planned for."""
        names = self.names
        return Arrivals(frozenset(names[i] for i in self.expected), frozenset(names[i] for i in self.retained))

    def are_for(self, arriving: Arrivals | None) -> bool:
        """Whether the step is planned for these gradients; None: for those that most likely come."""
        return self.is_usual if arriving is None else self.arrivals == arriving

    def left_before(self, modules: Mapping[str, torch.nn.Module]) -> Any:
        """What the step before has left in modules (by name) where this step leaves its own."""
        return [stash.held(modules) for stash in self.stashes]

    def hand_over(self, tensors: Sequence[torch.Tensor], modules: Mapping[str, torch.nn.Module], arguments: Any) -> Any:
        """What forward returns, with all that it leaves in modules (by name) and arguments left there."""
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
    """The tensors of what forward returned and left behind, and their places. Raises StructureError, CaptureError.

    names: of those that are wanted (all by default); in the place of another stands None, or nothing is left there.
    """
    tensors, structure = flatten(returned, "output")
    outputs = Outputs(structure, tuple(stash for stash, _ in left))
    if names is None:
        return [*tensors, *chain.from_iterable(parts for _, parts in left)], outputs
    _check_names(names, outputs.names, "outputs")
    kept = [t if is_named(name, names) else None for name, t in zip(structure.names, tensors, strict=True)]
    tensors, structure = flatten(structure.unflatten(kept), "output")
    wanted = [(stash, parts) for stash, parts in left if is_named(stash.name, names)]
    outputs = Outputs(structure, tuple(stash for stash, _ in wanted))
    return [*tensors, *chain.from_iterable(parts for _, parts in wanted)], outputs


def with_gradients(
    tensors: Sequence[torch.Tensor],
    outputs: Outputs,
    names: Sequence[str] | None,
    arriving: Arrivals | None,
) -> Outputs:
    """The outputs with those marked that receive gradients.

    names: of those that may (by default all that can). arriving: what to plan for; by default all of `names`, else
    `loss` if there is one, else all that forward returns. Raises CaptureError, NothingToDifferentiate.
    """
    told = outputs.names
    first = _first_places(tensors, len(tensors) - len(outputs.changed))
    has_gradient = (t.requires_grad and (t.is_floating_point() or t.is_complex()) for t in tensors)
    can = [i for i, has in enumerate(has_gradient) if has and first[i] == i]
    able = can
    if names is not None:
        _check_names(names, told, "differentiable")
        named = {place for place, name in zip(first, told, strict=True) if is_named(name, names)}
        able = [i for i in can if i in named]
    if not able:
        raise NothingToDifferentiate(
            f"no output requires a gradient (the module returns {list(told)}): there is no backward to plan; check "
            "that parameters require gradients and that labels are passed"
        )
    returned = [i for i in able if i < len(outputs.returned.names)]
    losses = [place for place, name in zip(first, outputs.returned.names, strict=False) if name == "loss"]
    usual = able if names is not None else [i for i in returned if i in losses] or returned or able
    expected = usual if arriving is None else [i for i in able if told[i] in arriving.gradients]
    retained = [i for i in able if arriving is not None and told[i] in arriving.retained]
    return replace(
        outputs,
        able=tuple(able),
        expected=tuple(expected),
        retained=tuple(retained),
        is_usual=expected == usual and not retained,
        declined=tuple(i for i in can if i not in able),
        inside=tuple(_inside(tensors, can)),
        first=first,
    )


def _first_places(tensors: Sequence[torch.Tensor], count: int) -> tuple[int, ...]:
    """For each tensor where the very same one stands first, of the first `count` tensors."""
    places: dict[int, int] = {}
    return tuple(places.setdefault(id(t), i) if i < count else i for i, t in enumerate(tensors))


def _inside(tensors: Sequence[torch.Tensor], can: Sequence[int]) -> Iterator[int]:
    """Those of some outputs from which others are computed."""
    behind = {i: nodes_behind(tensors[i]) for i in can} if len(can) > 1 else {}
    for i in behind:
        own = tensors[i].grad_fn
        if own is not None and any(own in behind[j] for j in behind if j != i and tensors[j].grad_fn is not own):
            yield i


def is_named(name: str, wanted: Sequence[str]) -> bool:
    """Whether an output is one of those wanted, or lies inside one."""
    return any(name == w or name.startswith(w + ".") for w in wanted)


def _check_names(wanted: Sequence[str], have: Sequence[str], what: str) -> None:
    for name in wanted:
        if not any(is_named(one, [name]) for one in have):
            raise CaptureError(f"{what} names {name!r}, which the module does not return; it returns {list(have)}")
