"""Finds how backward reads a value that forward made: through which calls, directly or through values made of it
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import fx

from ..calls import arguments_of
from ..step_graph import StepGraph
from ..step_kernels import ComputeKernel

ValueRead = tuple[fx.Node, int]
"""A call of backward and a storage that it may read."""


def reads_of_values(step: StepGraph, storage: int, readers: Sequence[ComputeKernel]) -> Iterator[ValueRead]:
    """Yield calls of backward with a storage that they may read: this one, or one that `readers` make of it alone.

    Results made of forward's values are followed. Results made of gradients are not: there the values are factors.
    """
    followed, waiting = {storage}, [(storage, kernel) for kernel in readers]
    while waiting:
        read, kernel = waiting.pop()
        yield from ((call, read) for call in kernel.calls)
        if kernel.repeatable:  # so it is not made of gradients
            made = set(kernel.makes) - followed
            followed |= made
            waiting += [(new, later) for new in made for later in step.compute_kernels if new in later.reads]


def reads_as(step: StepGraph, call: fx.Node, storage: int, operands: Iterable[str]) -> bool:
    """Return whether a call reads a storage as one of some operands, by the names of its schema."""
    arguments = arguments_of(call)
    read = (arguments.get(operand) for operand in operands)
    return any(isinstance(node, fx.Node) and step.storage_of.get(node) == storage for node in read)
