"""The portfolio: budgets kept, monotone, never worse than a recipe, clear when nothing fits."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.errors import InfeasibleBudget
from lowtide.solvers.liveness import forecast
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.recipes import Recipes
from lowtide.solvers.simulate import baseline_of, simulate
from made_problems import MEBIBYTE, chain_of_blocks, llama

PORTFOLIO = Portfolio()


def answers(problem, count=12):
    """Plans at `count` budgets from the smallest feasible one up, lowest first."""
    lowest = PORTFOLIO.frontier(problem, 1000)[-1].peak_bytes
    highest = baseline_of(problem).peak_bytes
    budgets = [lowest + (highest - lowest) * i // (count - 1) for i in range(count)]
    return [PORTFOLIO.solve(problem, budget) for budget in budgets]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 5), classes=st.integers(1, 2))
def test_every_plan_keeps_its_budget_and_a_smaller_budget_gives_no_higher_peak_and_no_less_time(seed, blocks, classes):
    problem = chain_of_blocks(seed, blocks=blocks, classes=classes)
    plans = answers(problem)
    for plan in plans:
        assert plan.peak_bytes <= plan.budget_bytes
        assert plan.seconds == simulate(problem, plan.schedule).seconds
        assert plan.lower_bound_seconds <= plan.extra_seconds + 1e-9
    for smaller, larger in pairwise(plans):
        assert smaller.peak_bytes <= larger.peak_bytes
        assert smaller.seconds >= larger.seconds


def test_a_plan_is_strictly_better_than_every_mixture_of_recipes_that_costs_something():
    problem = llama()
    for candidate in Recipes().candidates(problem):
        recipe = forecast(problem, candidate.order)
        plan = PORTFOLIO.solve(problem, recipe.peak_bytes)
        assert plan.seconds <= recipe.seconds
        if recipe.seconds > problem.seconds * 1.01:
            assert plan.seconds < recipe.seconds * 0.999, candidate.told


def test_extra_time_on_llama_blocks_is_close_to_what_is_proven_to_be_needed():
    problem = llama()
    for mebibytes, most in ((92.8, 0.0), (79.3, 4.0), (57.3, 9.5), (36.8, 15.0), (23.8, 19.0)):
        plan = PORTFOLIO.solve(problem, int(mebibytes * MEBIBYTE))
        assert 100 * plan.extra_share <= most + 1e-4
        assert plan.extra_seconds - plan.lower_bound_seconds < 0.02 * plan.baseline_seconds


def test_the_smallest_peak_is_far_below_checkpointing_every_block():
    problem = llama()
    orders = {candidate.told: candidate.order for candidate in Recipes().candidates(problem)}
    full = forecast(problem, orders["checkpoint every block"]).peak_bytes
    assert PORTFOLIO.frontier(problem, 50)[-1].peak_bytes < 0.6 * full


def test_deep_models_need_no_more_distinct_ways_to_run_a_block_than_shallow_ones():
    variants = {}
    for layers in (12, 48):
        problem = llama(layers)
        baseline = baseline_of(problem).peak_bytes
        for percent in (70, 50, 30):
            plan = PORTFOLIO.solve(problem, baseline * percent // 100)
            variants[layers, percent] = len(distinct_segments(problem, plan.schedule))
    for percent in (70, 50, 30):
        assert variants[48, percent] <= 1.5 * variants[12, percent], variants


def distinct_segments(problem, schedule):
    """Segments up to renaming: the operations they run, by their place in their block."""
    first = {}
    for index, op in enumerate(problem.ops):
        first.setdefault((op.block, index >= problem.forward_length), index)
    distinct = set()
    for number, segment in enumerate(schedule.segments):
        told = [problem.block_classes[segment.block], number < len(schedule.segments) // 2]
        for instruction in schedule.instructions[segment.start : segment.stop]:
            index = getattr(instruction, "op", None)
            if index is None:
                index = problem.maker[instruction.value]
            op = problem.ops[index]
            place = index - first[op.block, index >= problem.forward_length]
            told.append((type(instruction).__name__, op.block - segment.block, place))
        distinct.add(tuple(told))
    return distinct


def test_an_impossible_budget_names_the_operation_that_stands_in_the_way_and_what_would_help():
    problem = llama()
    smallest = PORTFOLIO.frontier(problem, 1000)[-1].peak_bytes
    with pytest.raises(
        InfeasibleBudget,
        match=r"no schedule of llama12 fits 9.00 MiB: the smallest peak found is .* MiB, at layers\..*; "
        "raise the budget or lower the batch",
    ) as raised:
        PORTFOLIO.solve(problem, 9 * MEBIBYTE)
    assert raised.value.smallest_bytes == smallest
    assert PORTFOLIO.solve(problem, smallest).peak_bytes == smallest
    with pytest.raises(InfeasibleBudget, match=r"fits 5.00 MiB: layers\..* \(backward\) alone needs .* MiB"):
        PORTFOLIO.solve(problem, 5 * MEBIBYTE)


def test_a_solver_may_be_chosen_by_name_and_an_unknown_name_is_told_the_known_ones():
    problem = llama(layers=2)
    assert PORTFOLIO.solve(problem, 10**9, solver="recipes").solver == "recipes"
    with pytest.raises(ValueError, match="no solver 'magic': choose among auto, keep_all, recipes, hierarchical, greedy"):
        PORTFOLIO.solve(problem, 10**9, solver="magic")


def test_a_plan_says_why_the_other_solvers_were_not_taken():
    problem = llama()
    plan = PORTFOLIO.solve(problem, 60 * MEBIBYTE)
    assert plan.solver == "greedy"
    assert any("keep_all does not fit" in note for note in plan.notes)
    assert any("recipes would take" in note for note in plan.notes)


def test_progress_never_goes_back_and_ends_at_one():
    told = []
    Portfolio().solve(llama(layers=3), 10**9, progress=lambda share, text: told.append(share))
    assert told == sorted(told)
    assert told[-1] == 1.0
