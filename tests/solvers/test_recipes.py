"""Recipes: every candidate is a valid schedule, and the simulator agrees with the fast forecast."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.keep_all import KeepAll
from lowtide.solvers.problem.errors import InfeasibleBudget
from lowtide.solvers.problem.liveness import forecast, schedule_of
from lowtide.solvers.problem.simulate import baseline_of, simulate
from lowtide.solvers.recipes import Recipes
from made_problems import MEBIBYTE, chain_of_blocks, llama


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 5), classes=st.integers(1, 2))
def test_every_recipe_is_a_valid_schedule_and_its_forecast_is_what_the_simulator_says(seed, blocks, classes):
    problem = chain_of_blocks(seed, blocks=blocks, classes=classes)
    for solver in (KeepAll(), Recipes()):
        for candidate in solver.candidates(problem):
            prediction = forecast(problem, candidate.order)
            timeline = simulate(problem, schedule_of(problem, candidate.order))
            assert (prediction.peak_bytes, prediction.seconds) == (timeline.peak_bytes, timeline.seconds), (
                candidate.description
            )


def test_recipes_on_llama_blocks_need_what_people_measure():
    """Compare bytes (MiB) and extra matmul FLOPs of twelve blocks with the figures measured on the real model."""
    problem = llama()
    baseline = baseline_of(problem)
    assert baseline.peak_bytes / MEBIBYTE == pytest.approx(163.8, rel=0.03)
    orders = {candidate.description: candidate.order for candidate in Recipes().candidates(problem)}
    selective = forecast(problem, orders["selective in every block before the head"])
    assert selective.peak_bytes / MEBIBYTE < 100.8
    assert selective.seconds == pytest.approx(baseline.seconds, rel=1e-6)
    full = forecast(problem, orders["checkpoint every block"])
    assert full.peak_bytes / MEBIBYTE == pytest.approx(23.1, rel=0.1)
    assert full.seconds / baseline.seconds - 1 == pytest.approx(0.25, abs=0.03)


def test_a_group_of_blocks_is_rematerialized_by_the_segment_that_needs_it_first():
    problem = llama(layers=6)
    description = "inputs of every 3 blocks, nested"
    order = next(c.order for c in Recipes().candidates(problem) if c.description == description)
    blocks = len(problem.block_classes)
    recomputed_blocks = [
        {problem.ops[op].block for op in segment if op < problem.forward_length} for segment in order[blocks:]
    ]
    assert recomputed_blocks == [set(), {6}, {3, 4, 5}, {4}, {3}, {0, 1, 2}, {1}, set()]


def test_a_recipe_under_an_impossible_budget_says_what_the_smallest_needs():
    with pytest.raises(InfeasibleBudget, match="fits 10 bytes: the smallest needs") as raised:
        Recipes().schedule(llama(layers=2), 10)
    assert raised.value.smallest_bytes > 10
