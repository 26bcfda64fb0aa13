"""The recipes that people write by hand, so that no plan costs more than the best of them that fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isqrt

from .blocks.block_values import block_inputs, forward_values, repeated_blocks, shared_values
from .blocks.layers import in_blocks, in_layers
from .blocks.rematerialize import Lifetime, droppable, run_order
from .pareto import cheapest_under
from .problem.liveness import Candidate, schedule_of
from .problem.problem import Problem
from .problem.schedule import Schedule


@dataclass(frozen=True)
class Recipes:
    """Checkpoint every block, every n blocks, selectively, and mixtures of these.

    Blocks are whole layers (`in_layers`).

    full: a block keeps its inputs and runs its forward again (Chen et al. 2016, arXiv 1604.06174, section 3).
    every n, √n: only the inputs of every n-th block are kept (Chen et al., section 4.1); the group's forward runs
        again when its last block's backward begins, and either all of it then stays, or only the blocks' inputs and
        each block runs again once more.
    selective: what matrix products, convolutions and fused attention make is kept, the rest runs again
        (Korthikanti et al. 2022, arXiv 2205.05198, section 5).
    mixtures: the last k blocks keep everything or selectively, those before selectively or by their inputs alone.
        What comes after the last repeated block (the head) keeps everything: its backward comes first.

    Guarantee: none, beyond being what one would do by hand. Cost: one run order per recipe; at most
    `mixture_count` values of k per kind of mixture.
    """

    mixture_count: int = 100
    name: str = "recipes"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """All recipes, whatever they need."""
        layers = in_layers(problem)
        for told, lifetimes in _recipes(layers, self.mixture_count):
            yield Candidate(told, in_blocks(problem, run_order(layers, lifetimes)))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """The fastest recipe that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)


def _recipes(problem: Problem, mixture_count: int) -> Iterator[tuple[str, bytes]]:
    blocks, repeated = range(len(problem.block_classes)), repeated_blocks(problem)
    dropping = range(repeated[-1] + 1) if repeated else blocks
    yield "selective in every block", _mixture(problem, selective=blocks)
    yield "checkpoint every block", _mixture(problem, full=blocks)
    count = len(dropping)
    steps = sorted({round(step * count / min(count, mixture_count)) for step in range(mixture_count + 1)} | {count})
    for last in (k for k in steps if k <= count):
        early, late = dropping[: count - last], dropping[count - last :]
        yield f"last {last} blocks selective, others full", _mixture(problem, full=early, selective=late)
        if last < count:
            yield f"last {last} blocks keep all, others full", _mixture(problem, full=early)
            yield f"last {last} blocks keep all, others selective", _mixture(problem, selective=early)
    for group in range(2, max(isqrt(count), 4) + 3):
        if group < count:
            yield f"inputs of every {group} blocks, group held", _grouped(problem, dropping, group, True)
            yield f"inputs of every {group} blocks, nested", _grouped(problem, dropping, group, False)


def _mixture(problem: Problem, full: Iterable[int] = (), selective: Iterable[int] = ()) -> bytes:
    """Lifetimes with some blocks checkpointed, fully or selectively."""
    lifetimes = bytearray(len(problem.values))
    shared, maker = shared_values(problem), problem.maker
    for chosen, keeps_intensive in ((full, False), (selective, True)):
        for block in chosen:
            for value in forward_values(problem)[block]:
                if value not in shared and not (keeps_intensive and problem.ops[maker[value]].intensive):
                    lifetimes[value] = Lifetime.SEGMENT
    return bytes(lifetimes)


def _grouped(problem: Problem, blocks: range, group: int, hold: bool) -> bytes:
    """Lifetimes with only the inputs of every `group`-th block kept.

    hold: what the group's other blocks need stays once it has run again; otherwise only their inputs stay.
    """
    lifetimes = bytearray(_mixture(problem, full=blocks))
    may_drop, shared = droppable(problem), shared_values(problem)
    if hold:
        for block in blocks:
            for value in forward_values(problem)[block]:
                if value not in shared:
                    lifetimes[value] = Lifetime.BACKWARD
    for block in blocks:
        if block % group:
            for value in block_inputs(problem, block):
                # what is carried through many blocks is needed by every group
                if may_drop[value] and problem.ops[problem.maker[value]].block == block - 1:
                    lifetimes[value] = Lifetime.BACKWARD
    return bytes(lifetimes)
