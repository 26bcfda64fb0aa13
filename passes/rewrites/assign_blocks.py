"""Cuts the forward where few bytes cross, and gives every kernel the block whose forward or backward it belongs to."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from ...solvers.blocks.cuts import window_cuts
from ...solvers.problem.liveness import bytes_at
from ..step_graph import StepGraph
from ..step_kernels import Kernel


@dataclass(frozen=True)
class AssignBlocks:
    """Gives each kernel its block, names the blocks after modules, and finds which are equal up to renaming.

    before: all kernels are of block 0, called "step"
    after:  kernels of forward and backward are of blocks 0, 1, 2, ..., called "layers.0", "layers.1", ...

    rise: between two cuts the crossing bytes rise to this multiple of those at the cuts.
    """

    name: ClassVar[str] = "assign_blocks"
    fidelity: ClassVar[str] = "bitwise"
    rise: float = 1.2

    def __call__(self, step: StepGraph) -> StepGraph:
        cuts = add_window_cuts(step, find_narrow_cuts(crossing_bytes(step), self.rise))
        block_of = _blocks_between(step, cuts)
        kernels = [replace(kernel, block=block) for kernel, block in zip(step.kernels, block_of, strict=True)]
        step = step.with_kernels(kernels)
        return replace(step, block_names=_names(step, len(cuts) + 1), block_classes=_classes(step, len(cuts) + 1))


def _blocks_between(step: StepGraph, cuts: list[int]) -> list[int]:
    """Return the block of each kernel; in backward, that of the forward kernels which it belongs to."""
    forward = step.kernels[: step.forward_length]
    block_of = [bisect_left(cuts, i + 1) for i in range(len(forward))]
    # Backward runs autograd's nodes in the reverse of the order in which forward made them.
    last_sequence = [-1] * (len(cuts) + 1)
    for kernel, block in zip(forward, block_of, strict=True):
        last_sequence[block] = max(last_sequence[block], kernel.sequence)
    for block in range(1, len(last_sequence)):
        last_sequence[block] = max(last_sequence[block], last_sequence[block - 1])
    lowest = len(cuts)
    for kernel in step.kernels[step.forward_length :]:
        lowest = min(lowest, bisect_left(last_sequence, kernel.sequence))
        block_of.append(lowest)
    return block_of


def crossing_bytes(step: StepGraph) -> list[int]:
    """Return the bytes made before and read after each position between forward kernels (0 is before the first)."""
    made_at: dict[int, int] = {}
    last_read: dict[int, int] = {}
    for index, kernel in enumerate(step.kernels[: step.forward_length]):
        made_at.update(dict.fromkeys(kernel.makes, index))
        last_read.update(dict.fromkeys(kernel.reads, index))
    spans = (
        (index + 1, last_read[storage] + 1, step.storages[storage].size_bytes)
        for storage, index in made_at.items()
        if storage in last_read
    )
    return bytes_at(spans, step.forward_length + 1)


def find_narrow_cuts(crossing: list[int], rise: float) -> list[int]:
    """Return positions of the valleys: minima of the crossing bytes between two rises.

    crossing: crossing[i] are the bytes that cross before kernel i; the ends are not cuts.
    rise: a rise is one to this multiple.

    Values that many blocks read (a mask, an encoder's output) raise all positions alike, so they do not hide the cuts.
    """
    cuts: list[int] = []
    lowest, lowest_at, highest, falling = 0, 0, 0, False
    for position in range(1, len(crossing) - 1):
        current = crossing[position]
        if falling:
            if current < lowest:
                lowest, lowest_at = current, position
            elif current > rise * lowest:
                cuts.append(lowest_at)
                falling, highest = False, current
        else:
            highest = max(highest, current)
            if current * rise < highest:
                falling, lowest, lowest_at = True, current, position
    return cuts


def add_window_cuts(step: StepGraph, cuts: list[int]) -> list[int]:
    """Return the cuts, and more where many kernels lie between two of them (a U-Net, whose skips cross every cut).

    A block's gradients are returned to autograd when its backward ends: large blocks would hold many of them.
    """
    size_bytes = [storage.size_bytes for storage in step.storages]
    accesses = [(kernel.reads, kernel.makes) for kernel in step.kernels[: step.forward_length]]
    finer: list[int] = []
    for start, end in pairwise([0, *cuts, len(accesses)]):
        finer += [start] * (start > 0) + [start + cut for cut in window_cuts(accesses[start:end], size_bytes)]
    return finer


def _names(step: StepGraph, count: int) -> tuple[str, ...]:
    """Return, for each block, the module that most of its kernels lie in, cut after its last number (`h.3`)."""
    names = []
    for block in range(count):
        modules = Counter(_repeated_part(k.module) for k in step.kernels if k.block == block and k.phase == "forward")
        modules.pop("", None)
        names.append(modules.most_common(1)[0][0] if modules else "step")
    return tuple(names)


def _repeated_part(module: str) -> str:
    parts = module.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbered[0] + 1]) if numbered else module


def _classes(step: StepGraph, count: int) -> tuple[int, ...]:
    """Return the number of each block's class; blocks of a class run the same calls wired in the same way."""
    grouped: list[list[Kernel]] = [[] for _ in range(count)]
    for kernel in step.kernels:
        grouped[kernel.block].append(kernel)
    known: dict[tuple[object, ...], int] = {}
    return tuple(known.setdefault(_canonical(step, kernels), len(known)) for kernels in grouped)


def _canonical(step: StepGraph, kernels: list[Kernel]) -> tuple[object, ...]:
    """Return a description of a block's kernels, with storages numbered by first appearance."""
    numbers: dict[int, int] = {}
    parts: list[object] = []
    for kernel in kernels:
        wiring = tuple(numbers.setdefault(s, len(numbers)) for s in (*kernel.reads, *kernel.makes, *kernel.writes))
        sizes = tuple(step.storages[s].size_bytes for s in kernel.reads)
        parts.append((kernel.kind, kernel.phase, wiring, len(kernel.reads), sizes))
    return tuple(parts)
