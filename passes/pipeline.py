"""Runs the passes in order, those that a fidelity allows."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from .build_step_graph import build_step_graph
from .joint_graph import copy_graph
from .rewrites.accumulate_grads import AccumulateGrads
from .rewrites.assign_blocks import AssignBlocks
from .rewrites.change_in_place import ChangeInPlace
from .rewrites.chunk_cross_entropy import ChunkCrossEntropy
from .rewrites.free_factories import FreeFactories
from .rewrites.fuse_gelu import WrittenGelu
from .rewrites.gather_checks import GatherChecks
from .rewrites.keep_shapes import KeepShapes
from .rewrites.pack_indices import PackIndices
from .rewrites.pack_masks import PackMasks
from .rewrites.recompute_in_backward import RecomputeInBackward
from .rewrites.run_in_place import RunInPlace
from .rewrites.save_outputs import InvertOutputs, SaveOutputs
from .rewrites.sum_in_place import SumInPlace
from .savings import Saving, apply_passes
from .step_graph import StepGraph

# From the strictest to the loosest: a pass runs at its own fidelity and at looser ones.
FIDELITIES = ("bitwise", "rounding", "approximate")

GRAPH_PASSES = (
    FreeFactories(),
    PackMasks(),
    PackIndices(),
    KeepShapes(),
    SaveOutputs(),
    WrittenGelu(),
    InvertOutputs(),
    ChunkCrossEntropy(),
)
# Over a graph after the others: the step graph of the result is a variant of the first one.
VARIANT_PASSES = (RecomputeInBackward(),)
STEP_PASSES = (RunInPlace(), ChangeInPlace(), SumInPlace(), AssignBlocks(), GatherChecks(), AccumulateGrads())


def allowed_at(fidelity: str) -> tuple[str, ...]:
    """Return the fidelities of the passes that are allowed at a fidelity."""
    return FIDELITIES[: FIDELITIES.index(fidelity) + 1]


def find_further_savings(graph: fx.GraphModule, fidelity: str) -> tuple[Saving, ...]:
    """Return the savings of the passes that a fidelity excludes, after those that it allows."""
    allowed = allowed_at(fidelity)
    return apply_passes(graph, [graph_pass for graph_pass in GRAPH_PASSES if graph_pass.fidelity not in allowed])[1]


def run_passes(graph: fx.GraphModule, fidelity: str = "bitwise") -> tuple[fx.GraphModule, StepGraph]:
    """Return a joint graph after all passes of a fidelity, and its step graph; the given graph stays as it is."""
    allowed = allowed_at(fidelity)
    graph, savings = apply_passes(graph, [graph_pass for graph_pass in GRAPH_PASSES if graph_pass.fidelity in allowed])
    return graph, _step_of(graph, fidelity, savings)


def recompute_in_backward(graph: fx.GraphModule, step: StepGraph) -> tuple[fx.GraphModule, StepGraph] | None:
    """Return the variant of an approximate step whose backward recomputes what it can, as graph and step graph.

    Backward recomputes from values that it reads anyway. Return None if there is nothing to recompute.
    graph, step: the results of `run_passes`.
    """
    variant = copy_graph(graph)
    changes = [graph_pass.rewrite(variant) for graph_pass in VARIANT_PASSES]
    return (variant, _step_of(variant, "approximate", step.savings)) if any(changes) else None


def _step_of(graph: fx.GraphModule, fidelity: str, savings: tuple[Saving, ...]) -> StepGraph:
    step = replace(build_step_graph(graph), savings=savings)
    for step_pass in STEP_PASSES:
        if step_pass.fidelity in allowed_at(fidelity):
            step = step_pass(step)
    return step
