"""Compare with the true optimum of tiny problems: the bound never exceeds it, the plans are near it."""

from exhaustive import least_seconds
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.solvers.bound import lower_bound_seconds
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.simulate import baseline_of
from made_problems import llama, tiny, with_encodings, with_halves
from pytest import approx

PORTFOLIO = Portfolio(cache=None)


@settings(max_examples=120, deadline=None)
@given(seed=st.integers(0, 100_000), share=st.floats(0, 1))
def test_the_bound_is_never_above_the_optimum_and_no_plan_is_below_it(seed, share):
    problem = tiny(seed)
    if len(problem.values) > 13:
        return
    frontier = Portfolio().frontier(problem, 50)
    low, high = frontier[-1].peak_bytes, frontier[0].peak_bytes
    budget = int(low - 1 + (high - low) * share)
    optimum = least_seconds(problem, budget)
    if optimum is None:
        return
    assert lower_bound_seconds(problem, budget) <= max(optimum - problem.seconds, 0) + 1e-9
    if budget >= low:
        assert Portfolio().solve(problem, budget).seconds >= optimum - 1e-9


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 100_000), share=st.floats(0, 1), encoded=st.sampled_from((0.3, 0.6)))
def test_with_encodings_too_the_bound_is_never_above_the_optimum_and_no_plan_below_it(seed, share, encoded):
    problem = with_encodings(tiny(seed), seed, encoded)
    if len(problem.values) + sum(1 + encoding.is_read_itself for v in problem.values for encoding in v.encodings) > 16:
        return
    frontier = PORTFOLIO.frontier(problem, 50)
    low, high = frontier[-1].peak_bytes, frontier[0].peak_bytes
    budget = int(low - 1 + (high - low) * share)
    optimum = least_seconds(problem, budget)
    if optimum is None:
        return
    assert lower_bound_seconds(problem, budget) <= max(optimum - problem.seconds, 0) + 1e-9
    if budget >= low:
        assert PORTFOLIO.solve(problem, budget).seconds >= optimum - 1e-9


def test_a_code_lowers_what_is_proven_and_a_costly_one_does_not():
    problem = llama(layers=4)
    budget = baseline_of(problem).peak_bytes * 30 // 100
    plain = lower_bound_seconds(problem, budget)
    free = lower_bound_seconds(with_halves(problem, 1, 0.0), budget)
    costly = lower_bound_seconds(with_halves(problem, 1, 1.0), budget)
    assert free < plain
    assert costly == approx(plain)


def test_most_plans_of_tiny_problems_are_optimal():
    optimal = total = 0
    for seed in range(120):
        problem = tiny(seed)
        if len(problem.values) > 13:
            continue
        frontier = Portfolio().frontier(problem, 50)
        for plan in frontier[1:]:
            total += 1
            optimum = least_seconds(problem, plan.peak_bytes)
            assert optimum is not None
            optimal += plan.seconds <= max(optimum, problem.seconds) + 1e-9
    assert total > 30
    assert optimal > 0.7 * total


def test_the_bound_rises_as_the_budget_falls_and_is_nothing_when_everything_fits():
    problem = llama()
    bounds = [lower_bound_seconds(problem, mebibytes << 20) for mebibytes in (200, 100, 60, 30, 15)]
    assert bounds[:2] == approx([0, 0], abs=1e-6)
    assert bounds == sorted(bounds)
    assert bounds[3] > 0.15 * problem.seconds
