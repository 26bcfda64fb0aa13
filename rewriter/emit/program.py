"""Load generated Python: the functions of a rewritten step, and the calls of each block."""

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
from .direct_operations import DirectOperations

# A value on the tape: the number of a storage, or ("state", number of the operation) for a recorded generator state, or
# ("code", number of the value, number of its encoding).
Key = int | tuple[str, int] | tuple[str, int, int]
SEED_KEY: Key = ("seed", 0)  # the key of the number from which random codecs derive their seeds in this step


@dataclass(frozen=True)
class Binding:
    """One call of a generated function.

    takes: its arguments from the tape, in order.
    drops: the arguments that leave the tape.
    gives: the values that it puts on the tape.
    constants: the numbers in which it differs from other calls of the same function.
    gradients: for a backward segment, the sources of the gradients that it returns.
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
    """A binding prepared for each step, with everything looked up that is the same each time.

    fetches: its arguments from the tape, each with whether it leaves the tape.
    watched: the arguments that the user can change between forward and backward.
    gradients: the sources of the gradients that it returns.
    has_outputs: whether outputs are among these.
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

    number: counted from the first.
    forward, backward: the calls of each phase, in order.
    enter: the sources whose tensors enter autograd's graph here, in the order in which backward returns gradients.
    """

    number: int
    forward: tuple[Prepared, ...]
    backward: tuple[Prepared, ...]
    enter: tuple[Source, ...]


@dataclass(frozen=True)
class Program:
    """All data of a rewritten forward and backward.

    code: the text that was executed.
    functions: the generated functions, by name.
    forward, backward: one binding per block, in running order.
    residents: the storages of parameters, buffers, inputs and constants, with their sources.
    tangents: the storages of the incoming gradients.
    output_storages: the storage of each output.
    updated: buffers and inputs that forward changes.
    depends: for each gradient, the numbers of the tangents on which it depends.
    outputs: the outputs, and which of them have tangents (`expected`).
    link_sizes: the numbers of neighbouring blocks, from the first to the last, that are one node of autograd's graph.
    idle: sources that gradients may reach, but that no expected gradient reaches.
    undo: the sources that copies restore if a decision differs, None for the generator.
    rereads: whether results depend on former values of `updated`.
    random: whether it draws random numbers.
    is_checked: whether decisions are checked while it runs.
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
        """One node per block: each gradient is accumulated into .grad right after its block's backward."""
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
        """The calls of forward, block by block."""
        return tuple(map(self._prepared, self.forward))

    @cached_property
    def prepared_backward(self) -> tuple[Prepared, ...]:
        """The calls of backward, the last block first."""
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
        """Return whether its codecs draw random numbers."""
        return any(SEED_KEY in binding.takes for binding in (*self.forward, *self.backward))

    @cached_property
    def watched(self) -> tuple[Key, ...]:
        """The values read by backward that the user can change after forward: parameters, buffers, inputs, outputs."""
        read = {key for binding in self.backward for key in binding.takes if isinstance(key, int)}
        resident = {key for key in read if key in self.residents and self.residents[key] not in self.updated}
        return tuple(sorted(resident | (read & set(self.output_storages) - set(self.residents))))


_ATEN, _LOWTIDE = DirectOperations(torch.ops.aten), DirectOperations(torch.ops.lowtide)
_numbers = itertools.count(1)
_LONGEST_TITLE = 80


def load_functions(
    code: str, title: str, device: torch.device, objects: Mapping[str, Any]
) -> dict[str, Callable[..., Any]]:
    """Run generated code and return its functions; tracebacks through them show their lines.

    objects: additional names for this code.
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
    return {name: value for name, value in namespace.items() if name.startswith(("forward_", "backward_"))}


def own_gradient(target: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return a gradient that autograd can steal as the `.grad` of `target`: a copy with the same layout.

    If there is a `.grad` already, autograd adds to it and steals nothing, so the gradient itself is returned.
    """
    if target.is_leaf and target.grad is not None:
        return gradient
    return torch.empty_like(target).copy_(gradient)


@dataclass(frozen=True)
class Generator:
    """The default generator of a device."""

    device: torch.device

    def state(self) -> torch.Tensor:
        """Return a copy of its present state."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def drawing_from(self, state: torch.Tensor) -> _Draw:
        """Return a context in which it draws from `state`; its own state is restored at the end."""
        return _Draw(self, state)

    def set(self, state: torch.Tensor) -> None:
        """Set its state."""
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
