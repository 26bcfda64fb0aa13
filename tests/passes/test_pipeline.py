"""The pipeline runs the passes that a fidelity allows, and leaves the captured graph as it was."""

import re
from pathlib import Path

import pytest
import torch
from lowtide.passes.pipeline import (
    FIDELITIES,
    GRAPH_PASSES,
    STEP_PASSES,
    VARIANT_PASSES,
    find_further_savings,
    recompute_in_backward,
    run_passes,
)
from lowtide.passes.step_kernels import ComputeKernel, GradAccumulate
from pass_checks import captured_graph, everything
from small_networks import Called
from torch import nn
from torch.nn import functional

PASSES = (*GRAPH_PASSES, *VARIANT_PASSES, *STEP_PASSES)
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "passes"


@pytest.fixture
def graph():
    parts = {"gate": nn.Linear(16, 16), "up": nn.Linear(16, 16), "down": nn.Linear(16, 16)}
    return captured_graph(
        Called(lambda m, x: m.down(functional.dropout(functional.silu(m.gate(x)) * m.up(x), 0.1)), **parts),
        torch.randn(32, 16),
    )


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_captured_graph_stays_as_it_was(graph, fidelity):
    before = everything(graph)
    result, step = run_passes(graph, fidelity)
    recompute_in_backward(result, step)
    find_further_savings(graph, "bitwise")
    assert everything(graph) == before
    calls = {call for kernel in step.compute_kernels for call in kernel.calls}
    assert calls <= set(result.graph.nodes) and not calls & set(graph.graph.nodes)


def test_a_variant_leaves_the_first_step_as_it_was(graph):
    result, step = run_passes(graph, "approximate")
    before = everything(result), everything(step)
    variant, variant_step = recompute_in_backward(result, step)
    assert (everything(result), everything(step)) == before
    assert len(variant.graph.nodes) > len(result.graph.nodes)
    assert len(variant_step.kernels) > len(step.kernels) and variant_step.savings == step.savings


def test_every_pass_is_frozen_and_has_a_name_and_golden_file_of_its_own():
    names = [a_pass.name for a_pass in PASSES]
    assert len(set(names)) == len(names) and {file.stem for file in GOLDEN.glob("*.txt")} == set(names)
    for a_pass in PASSES:
        assert a_pass.fidelity in FIDELITIES and re.fullmatch("[a-z_]+", a_pass.name)
        with pytest.raises(AttributeError):
            a_pass.name = "another"


def test_gradients_are_accumulated_in_the_step_itself(graph):
    _, step = run_passes(graph)
    targets = [kernel.target.meta["source"].name for kernel in step.kernels if isinstance(kernel, GradAccumulate)]
    assert sorted(targets) == [f"{layer}.{name}" for layer in ("down", "gate", "up") for name in ("bias", "weight")]
    assert {type(kernel) for kernel in step.kernels if kernel.phase == "forward"} == {ComputeKernel}
