"""How backward reads a value that forward made: through which calls, itself or what it makes of such values alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import fx

from ..calls import arguments_of
from ..step_graph import Kernel, StepGraph

ValueRead = tuple[fx.Node, int]
"""A call of backward, and the storage that it may read."""


def reads_of_values(step: StepGraph, storage: int, readers: Sequence[Kernel]) -> Iterator[ValueRead]:
    """Calls of backward with a storage that they may read: this one, or what `readers` make of it alone.

    What is made of values of forward is followed, and what is made of gradients is not: those are factors everywhere.
    """
    found, waiting = {storage}, [(storage, kernel) for kernel in readers]
    while waiting:
        read, kernel = waiting.pop()
        if kernel.role != "compute":
            continue
        yield from ((call, read) for call in kernel.calls)
        if kernel.repeatable:  # and so made of no gradient
            made = set(kernel.makes) - found
            found |= made
            waiting += [(one, later) for one in made for later in step.kernels if one in later.reads]


def reads_as(step: StepGraph, call: fx.Node, storage: int, operands: Iterable[str]) -> bool:
    """Whether a call reads a storage as one of some operands, by the names of its schema."""
    told = arguments_of(call)
    read = (told.get(operand) for operand in operands)
    return any(isinstance(node, fx.Node) and step.storage_of.get(node) == storage for node in read)
