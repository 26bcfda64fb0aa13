"""Layers: blocks that repeat together are merged for planning, and get their own segments back."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.blocks.layer_choices import without_input
from lowtide.solvers.blocks.layers import in_blocks, in_layers
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.liveness import forecast, schedule_of, trace_order
from lowtide.solvers.problem.simulate import simulate
from lowtide.solvers.recipes import Recipes
from made_problems import llama
from pytest import approx


def halved(problem):
    """Return the problem with every layer cut into two blocks, at the attention's residual."""
    halves = [0]
    for op in problem.ops[: problem.forward_length]:
        if 0 < op.block < len(problem.block_classes) - 1:
            late = halves[-1] == 2 * op.block or op.name.endswith("norm2.pow")
            halves.append(2 * op.block if late else 2 * op.block - 1)
        elif op.block:
            halves.append(2 * len(problem.block_classes) - 3)
        else:
            halves.append(0)
    halves = halves[1:]
    for op in problem.ops[problem.forward_length :]:
        layer = op.block
        if layer == len(problem.block_classes) - 1:
            halves.append(2 * layer - 1)
        elif layer == 0:
            halves.append(0)
        else:
            attention = any(f"backward.{part}" in op.name for part in ("o.", "sdpa", "rope", "q.", "k.", "v."))
            attention = attention or op.name.endswith(("add_norm1", "add_stream")) or "norm1" in op.name
            halves.append(2 * layer - 1 if attention else 2 * layer)
    ops = tuple(replace(op, block=half) for op, half in zip(problem.ops, halves, strict=True))
    classes = [0, *[1, 2] * (len(problem.block_classes) - 2), 3]
    return replace(problem, ops=ops, block_classes=tuple(classes))


def test_blocks_that_repeat_together_become_one_layer():
    fine, coarse = halved(llama(layers=5)), llama(layers=5)
    assert fine.block_classes == (0, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 3)
    merged = in_layers(fine)
    assert [op.block for op in merged.ops] == [op.block for op in coarse.ops]
    assert merged.block_classes == coarse.block_classes
    assert in_layers(coarse) is coarse


def test_a_run_order_of_layers_gets_the_segments_of_its_blocks_back():
    fine = halved(llama(layers=4))
    assert in_blocks(fine, trace_order(in_layers(fine))) == trace_order(fine)
    for candidate in Recipes().candidates(fine):
        timeline = simulate(fine, schedule_of(fine, candidate.order))
        assert timeline.peak_bytes == forecast(fine, candidate.order).peak_bytes
        last = 2 * len(fine.block_classes) - 1
        for number, segment in enumerate(candidate.order):
            once = [fine.ops[index].block for index in segment if not fine.ops[index].repeatable]
            assert all(block == last - number for block in once)


def test_plans_are_as_good_for_a_model_cut_into_more_blocks():
    fine, coarse = halved(llama(layers=6)), llama(layers=6)
    for share in (70, 45, 25):
        budget = 90 * share * 2**20 // 100
        plans = [Portfolio().solve(problem, budget) for problem in (fine, coarse)]
        # not equal to the last bit: a finer cut has a few more nested schedules
        assert plans[0].seconds == approx(plans[1].seconds, rel=1e-6)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 40), kept=st.integers(1, 40))
def test_as_many_inputs_are_kept_as_asked_and_the_first_one_always(count, kept):
    chain, kept = range(1, count + 1), min(kept, count)
    dropped = without_input(chain, kept)
    assert len(dropped) == count - kept == len(set(dropped))
    assert 1 not in dropped
