"""Which passes run, in which order, at which fidelity."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from .blocks import assign_blocks
from .rewrites.change_in_place import ChangeInPlace
from .rewrites.chunk_cross_entropy import ChunkCrossEntropy
from .rewrites.forget_shapes import ForgetShapes
from .rewrites.free_factories import FreeFactories
from .rewrites.fuse_gelu import WrittenGelu
from .rewrites.gather_checks import gather_checks
from .rewrites.pack_indices import PackIndices
from .rewrites.pack_masks import PackMasks
from .rewrites.recompute_in_backward import with_recomputation
from .rewrites.run_in_place import RunInPlace
from .rewrites.save_outputs import InvertOutputs, SaveOutputs
from .rewrites.sum_in_place import SumInPlace
from .savings import Saving, applied, copied
from .sources import Source
from .step_graph import StepGraph, build

# From the strictest to the loosest: a pass runs when its fidelity is asked for or a looser one is.
FIDELITIES = ("bitwise", "rounding", "approximate")


GRAPH_PASSES = (
    FreeFactories(),
    PackMasks(),
    PackIndices(),
    ForgetShapes(),
    SaveOutputs(),
    WrittenGelu(),
    InvertOutputs(),
    ChunkCrossEntropy(),
)
STEP_PASSES = (RunInPlace(), ChangeInPlace(), SumInPlace())


def allowed_at(fidelity: str) -> tuple[str, ...]:
    """The fidelities of what may be done where one is asked for."""
    return FIDELITIES[: FIDELITIES.index(fidelity) + 1]


def savings_beyond(graph: fx.GraphModule, fidelity: str) -> tuple[Saving, ...]:
    """What the passes that are not run at a fidelity would take back of a graph after those that are."""
    allowed = allowed_at(fidelity)
    return applied(copied(graph), [one for one in GRAPH_PASSES if one.fidelity not in allowed])[1]


def run_passes(graph: fx.GraphModule, mutations: tuple[Source, ...], fidelity: str = "bitwise") -> StepGraph:
    """The step graph of a joint graph after all passes of the fidelity asked for, cut into blocks."""
    graph, savings = applied(graph, [one for one in GRAPH_PASSES if one.fidelity in allowed_at(fidelity)])
    return _step_of(graph, mutations, fidelity, savings)


def recompute_in_backward(
    graph: fx.GraphModule, mutations: tuple[Source, ...], step: StepGraph
) -> tuple[fx.GraphModule, StepGraph] | None:
    """A copy of an approximate step's graph, passes done, in which backward makes again what it can of what it reads
    anyway (`with_recomputation`), and its step graph; None if there is nothing."""
    again = with_recomputation(graph, frozenset(mutations))
    return None if again is None else (again, _step_of(again, mutations, "approximate", step.savings))


def _step_of(
    graph: fx.GraphModule, mutations: tuple[Source, ...], fidelity: str, savings: tuple[Saving, ...]
) -> StepGraph:
    step = replace(build(graph, mutations), savings=savings)
    for step_pass in STEP_PASSES:
        if step_pass.fidelity in allowed_at(fidelity):
            step = step_pass(step)
    return gather_checks(assign_blocks(step))
