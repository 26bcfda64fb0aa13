"""Runs the passes in order, those that a fidelity allows."""

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
from .rewrites.recompute_in_backward import add_recomputation
from .rewrites.run_in_place import RunInPlace
from .rewrites.save_outputs import InvertOutputs, SaveOutputs
from .rewrites.sum_in_place import SumInPlace
from .savings import Saving, apply_passes, copy_graph
from .sources import Source
from .step_graph import StepGraph, build_step_graph

# From the strictest to the loosest: a pass runs at its own fidelity and at looser ones.
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
    """Return the fidelities of the passes that are allowed at a fidelity."""
    return FIDELITIES[: FIDELITIES.index(fidelity) + 1]


def find_further_savings(graph: fx.GraphModule, fidelity: str) -> tuple[Saving, ...]:
    """Return the savings of the passes that a fidelity excludes, after those that it allows."""
    allowed = allowed_at(fidelity)
    return apply_passes(
        copy_graph(graph), [graph_pass for graph_pass in GRAPH_PASSES if graph_pass.fidelity not in allowed]
    )[1]


def run_passes(graph: fx.GraphModule, mutations: tuple[Source, ...], fidelity: str = "bitwise") -> StepGraph:
    """Return the step graph of a joint graph after all passes of a fidelity, cut into blocks."""
    graph, savings = apply_passes(
        graph, [graph_pass for graph_pass in GRAPH_PASSES if graph_pass.fidelity in allowed_at(fidelity)]
    )
    return _step_of(graph, mutations, fidelity, savings)


def recompute_in_backward(
    graph: fx.GraphModule, mutations: tuple[Source, ...], step: StepGraph
) -> tuple[fx.GraphModule, StepGraph] | None:
    """Return a copy of an approximate step's graph in which backward recomputes what it can, and its step graph.

    The graph is one after passes. Backward recomputes from values that it reads anyway (`add_recomputation`).
    Return None if there is nothing to recompute.
    """
    recomputing = add_recomputation(graph, frozenset(mutations))
    return None if recomputing is None else (recomputing, _step_of(recomputing, mutations, "approximate", step.savings))


def _step_of(
    graph: fx.GraphModule, mutations: tuple[Source, ...], fidelity: str, savings: tuple[Saving, ...]
) -> StepGraph:
    step = replace(build_step_graph(graph, mutations), savings=savings)
    for step_pass in STEP_PASSES:
        if step_pass.fidelity in allowed_at(fidelity):
            step = step_pass(step)
    return gather_checks(assign_blocks(step))
