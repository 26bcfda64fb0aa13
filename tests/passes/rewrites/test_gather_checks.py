"""Checks of decisions are made together at the end of each block's forward, all with the same copies."""

import copy

import torch
from lowtide.passes.rewrites.assign_blocks import AssignBlocks
from lowtide.passes.rewrites.gather_checks import GatherChecks
from lowtide.passes.step_graph import StepGraph
from lowtide.passes.step_kernels import DecisionCheck
from pass_checks import captured_step, compare_with_golden
from small_networks import Called
from torch import nn
from torch.nn import functional


def deciding(m, x):
    """A function that decides by its parameters before and after a layer."""
    y = m.first(x) if m.first.weight.sum() > -100 else x
    return m.second(y) if m.second.weight.sum() < -100 else y.sin()


def step_of() -> StepGraph:
    model = Called(deciding, first=nn.Linear(8, 8, bias=False), second=nn.Linear(8, 8, bias=False))
    return captured_step(model, torch.randn(4, 8))


def checks(step: StepGraph) -> list[DecisionCheck]:
    return [kernel for kernel in step.kernels if isinstance(kernel, DecisionCheck)]


def test_before_and_after(golden):
    compare_with_golden(golden, GatherChecks(), step_of())


def test_a_block_checks_all_its_decisions_at_its_end():
    step = step_of()
    gathered = GatherChecks()(step)
    (joined,) = checks(gathered)
    assert gathered.kernels[gathered.forward_length - 1] is joined
    assert joined.arguments[1] == [True, False]
    assert set(joined.reads) == {read for check in checks(step) for read in check.reads}


def test_each_block_checks_its_own_decisions():
    layer = Called(
        lambda m, x: m.after(functional.gelu(m.layer(x))) if m.layer.weight.sum() > -100 else x,
        layer=nn.Linear(8, 64),
        after=nn.Linear(64, 8),
    )
    step = AssignBlocks()(captured_step(nn.Sequential(*(copy.deepcopy(layer) for _ in range(4))), torch.randn(32, 8)))
    of_blocks = [check.block for check in checks(GatherChecks()(step))]
    assert of_blocks == sorted({check.block for check in checks(step)}) and len(of_blocks) > 1


def test_a_step_without_decisions_stays_as_it_is():
    step = captured_step(nn.Linear(8, 8), torch.randn(4, 8))
    assert GatherChecks()(step) is step
