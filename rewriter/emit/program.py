"""Generated Python, loaded: the functions of a rewritten step and which block calls which with what."""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from ...kernels.checks import require
from ...passes.sources import Source
from ...solvers.problem.plain_text import printable
from ..capture.boundary.outputs import Outputs
from ..capture.torch_internals import DirectOperations

# A value on the tape: the number of a storage, or ("state", number of the operation) for a recorded generator state, or
# ("code", number of the value, number of its encoding).
Key = int | tuple[str, int] | tuple[str, int, int]
SEED: Key = ("seed", 0)  # the number from which codecs that draw have theirs in this step


@dataclass(frozen=True)
class Binding:
    """One call of a generated function.

    takes: what it is given, in order; drops: those of them that leave the tape; gives: what it puts on the tape;
    constants: the numbers in which it differs from other calls of the same function; gradients: for a backward
    segment, the sources of the gradients it returns.
    """

    block: int
    function: str
    takes: tuple[Key, ...]
    drops: frozenset[Key]
    gives: tuple[Key, ...]
    constants: tuple[Any, ...]
    gradients: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A binding as it runs at each step, with all looked up that is the same each time.

    fetches: what it takes, with whether that leaves the tape; watched: those that others can change meanwhile;
    gradients: the sources of those that it returns; has_outputs: whether outputs are among these.
    """

    function: Callable[..., Any]
    constants: tuple[Any, ...]
    fetches: tuple[tuple[Key, bool], ...]
    gives: tuple[Key, ...]
    watched: tuple[Key, ...]
    gradients: tuple[Source, ...]
    has_outputs: bool


@dataclass(frozen=True)
class Link:
    """Neighbouring blocks that are one node of autograd's graph.

    number: counted from the first; forward, backward: what they run, in order; enter: the sources whose tensors enter
    autograd's graph here, in the order in which backward returns their gradients.
    """

    number: int
    forward: tuple[Prepared, ...]
    backward: tuple[Prepared, ...]
    enter: tuple[Source, ...]


@dataclass(frozen=True)
class Program:
    """Everything a rewritten forward and backward run.

    code: the text that was executed; forward and backward: one binding per block, in running order; residents: which
    storages are parameters, buffers, inputs and constants; link_sizes: how many neighbouring blocks, from the first to
    the last, are one node of autograd's graph; tangents: storages of the incoming gradients with what
    they belong to; output_storages: the storage each output lies in; updated: buffers that forward changes;
    depends: for each gradient, the numbers of the tangents it depends on; outputs: what is given, and which of it the
    tangents belong to (`expected`); idle: sources that gradients may reach, though none of those expected does; undo:
    what copies restore, should a decision go another way; is_checked: whether one may; rereads: whether results depend
    on what `updated` held; random: whether it draws random numbers.
    """

    code: str
    functions: Mapping[str, Callable[..., Any]]
    forward: tuple[Binding, ...]
    backward: tuple[Binding, ...]
    residents: Mapping[int, Source]
    tangents: tuple[int, ...]
    output_storages: tuple[int, ...]
    updated: frozenset[Source]
    depends: Mapping[Source, frozenset[int]]
    outputs: Outputs
    link_sizes: tuple[int, ...]
    idle: tuple[Source, ...] = ()
    undo: tuple[Source | None, ...] = ()
    rereads: bool = False
    random: bool = False
    is_checked: bool = False

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """The nodes of autograd's graph, forward's first one first."""
        return self._links(self.link_sizes)

    @cached_property
    def single_links(self) -> tuple[Link, ...]:
        """A node for each block: each gradient is handed over as soon as its block's backward is done."""
        return self._links((1,) * len(self.forward))

    def _links(self, sizes: tuple[int, ...]) -> tuple[Link, ...]:
        forward, backward = self.prepared_forward, self.prepared_backward[::-1]
        links, start = [], 0
        for number, size in enumerate(sizes):
            own = backward[start : start + size][::-1]
            enter = [source for part in own for source in part.gradients if source.kind != "output"]
            enter += self.idle if number == 0 else ()
            links.append(Link(number, forward[start : start + size], own, tuple(enter)))
            start += size
        return tuple(links)

    @cached_property
    def prepared_forward(self) -> tuple[Prepared, ...]:
        """What forward runs, block by block."""
        return tuple(map(self._prepared, self.forward))

    @cached_property
    def prepared_backward(self) -> tuple[Prepared, ...]:
        """What backward runs, the last block first."""
        return tuple(map(self._prepared, self.backward))

    def _prepared(self, binding: Binding) -> Prepared:
        watched = set(self.watched)
        return Prepared(
            function=self.functions[binding.function],
            constants=binding.constants,
            fetches=tuple((key, key in binding.drops and key not in self.residents) for key in binding.takes),
            gives=binding.gives,
            watched=tuple(key for key in binding.takes if key in watched),
            gradients=binding.gradients,
            has_outputs=any(source.kind == "output" for source in binding.gradients),
        )

    @cached_property
    def draws(self) -> bool:
        """Whether its codecs draw random numbers."""
        return any(SEED in binding.takes for binding in (*self.forward, *self.backward))

    @cached_property
    def watched(self) -> tuple[Key, ...]:
        """What backward reads that others can change in place meanwhile: parameters, buffers, inputs and outputs."""
        read = {key for binding in self.backward for key in binding.takes if isinstance(key, int)}
        resident = {key for key in read if key in self.residents and self.residents[key] not in self.updated}
        return tuple(sorted(resident | (read & set(self.output_storages) - set(self.residents))))


_ATEN, _LOWTIDE = DirectOperations(torch.ops.aten), DirectOperations(torch.ops.lowtide)
_numbers = itertools.count(1)
_LONGEST_TITLE = 80


def load_functions(
    code: str, title: str, device: torch.device, objects: Mapping[str, Any]
) -> dict[str, Callable[..., Any]]:
    """Runs generated code and returns its functions; tracebacks through them show their lines.

    objects: what the code reaches by name besides what all generated code does.
    """
    filename = f"<lowtide {printable(title[:_LONGEST_TITLE])} {next(_numbers)}>"
    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {
        **objects,
        "aten": _ATEN,
        "lowtide": _LOWTIDE,
        "torch": torch,
        "device": torch.device,
        "generator_state": Generator(device).state,
        "drawing_from": Generator(device).drawing_from,
        "require": require,
        "own_gradient": own_gradient,
    }
    exec(compile(code, filename, "exec"), namespace)
    return {name: told for name, told in namespace.items() if name.startswith(("forward_", "backward_"))}


def own_gradient(target: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A gradient that autograd can take over as the `.grad` of `target`: a copy, laid out like it.

    Where there is a `.grad` already, autograd adds to it and takes nothing over: then it is the gradient as it is.
    """
    if target.is_leaf and target.grad is not None:
        return gradient
    return torch.empty_like(target).copy_(gradient)


@dataclass(frozen=True)
class Generator:
    """The default generator of a device."""

    device: torch.device

    def state(self) -> torch.Tensor:
        """A copy of its present state."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def drawing_from(self, state: torch.Tensor) -> _Draw:
        """A context in which it draws from `state` again; afterwards it is where it was."""
        return _Draw(self, state)

    def set(self, state: torch.Tensor) -> None:
        """Puts it into `state`."""
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)


class _Draw:
    """The context of `drawing_from`."""

    def __init__(self, generator: Generator, state: torch.Tensor) -> None:
        self.generator = generator
        self.replayed = state

    def __enter__(self) -> None:
        self.present = self.generator.state()
        self.generator.set(self.replayed)

    def __exit__(self, *_: object) -> None:
        self.generator.set(self.present)
