"""Recipes that people write by hand, so that no plan costs more than the best of them that fits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isqrt

from .blocks.block_values import block_inputs, forward_values, repeated_blocks, shared_values
from .blocks.layers import in_blocks, in_layers
from .blocks.rematerialize import Lifetime, droppable, run_order
from .candidates.pareto import cheapest_under
from .problem.liveness import Candidate, schedule_of
from .problem.problem import Problem
from .problem.schedule import Schedule
from .solver import Solver


@dataclass(frozen=True)
class Recipes(Solver):
    """Checkpoint every block, every n blocks, selectively, and mixtures of these.

    Blocks are whole layers (`in_layers`).

    full: a block keeps its inputs and recomputes its forward (Chen et al. 2016, arXiv 1604.06174, section 3).
    every n, √n: only the inputs of every n-th block are kept (Chen et al., section 4.1). The group's forward is
        recomputed when the backward of its last block begins. Then either all of it stays, or only the blocks' inputs
        stay and each block is recomputed once more.
    selective: results of matrix products, convolutions and fused attention are kept, the rest is recomputed
        (Korthikanti et al. 2022, arXiv 2205.05198, section 5).
    mixtures: the last k blocks keep everything or selectively, those before selectively or by their inputs alone.
        Blocks after the last repeated block (the head) keep everything, as their backward comes first.

    mixture_count: at most this many values of k per kind of mixture.

    Guarantee: none, except that these are the common recipes. Cost: one run order per recipe.
    """

    always_finishes = True
    mixture_count: int = 100
    name: str = "recipes"

    def candidates(self, problem: Problem) -> Iterator[Candidate]:
        """Yield all recipes, at any peak."""
        layers = in_layers(problem)
        for description, lifetimes in _recipes(layers, self.mixture_count):
            yield Candidate(description, in_blocks(problem, run_order(layers, lifetimes)))

    def schedule(self, problem: Problem, budget_bytes: int) -> Schedule:
        """Return the fastest recipe that fits. Raises InfeasibleBudget if none does."""
        return schedule_of(problem, cheapest_under(problem, self.candidates(problem), budget_bytes).order)


def _recipes(problem: Problem, mixture_count: int) -> Iterator[tuple[str, bytes]]:
    blocks, repeated = range(len(problem.block_classes)), repeated_blocks(problem)
    dropping = range(repeated[-1] + 1) if repeated else blocks
    yield "selective in every block", _mixture(problem, selective=blocks)
    yield "checkpoint every block", _mixture(problem, full=blocks)
    count, head = len(dropping), " before the head" if len(dropping) < len(blocks) else ""
    steps = sorted({round(step * count / min(count, mixture_count)) for step in range(mixture_count + 1)} | {count})
    for last in (k for k in steps if k <= count):
        early, late = dropping[: count - last], dropping[count - last :]
        yield _described(last, "selective", "full", head), _mixture(problem, full=early, selective=late)
        if last < count:
            yield _described(last, "keep all", "full", head), _mixture(problem, full=early)
            yield _described(last, "keep all", "selective", head), _mixture(problem, selective=early)
    for group in range(2, max(isqrt(count), 4) + 3):
        if group < count:
            yield f"inputs of every {group} blocks, group held", _grouped(problem, dropping, group, True)
            yield f"inputs of every {group} blocks, nested", _grouped(problem, dropping, group, False)


def _described(last: int, late: str, early: str, head: str) -> str:
    """Describe a mixture of the last blocks and those before them.

    head: the words that leave out the blocks after those, if there are any.
    """
    if not last:
        return f"{early} in every block{head}"
    return f"last {last} blocks {late}, others {early}" if last > 1 else f"last block {late}, others {early}"


def _mixture(problem: Problem, full: Iterable[int] = (), selective: Iterable[int] = ()) -> bytes:
    """Return lifetimes with some blocks checkpointed, fully or selectively."""
    lifetimes = bytearray(len(problem.values))
    shared, maker = shared_values(problem), problem.maker
    for checkpointed, keeps_intensive in ((full, False), (selective, True)):
        for block in checkpointed:
            for value in forward_values(problem)[block]:
                if value not in shared and not (keeps_intensive and problem.ops[maker[value]].compute_intensive):
                    lifetimes[value] = Lifetime.SEGMENT
    return bytes(lifetimes)


def _grouped(problem: Problem, blocks: range, group: int, hold: bool) -> bytes:
    """Return lifetimes with only the inputs of every `group`-th block kept.

    hold: whether all recomputed values of the group's other blocks stay; otherwise only their inputs stay.
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
                # a value carried through many blocks is needed by every group
                if may_drop[value] and problem.ops[problem.maker[value]].block == block - 1:
                    lifetimes[value] = Lifetime.BACKWARD
    return bytes(lifetimes)
