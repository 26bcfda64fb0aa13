"""Compare with the true optimum of tiny problems: the bound never exceeds it, the plans are near it."""

from dataclasses import replace

from exhaustive import least_seconds
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lowtide.solvers.bound import lower_bound_seconds
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.problem import Problem
from lowtide.solvers.problem.simulate import baseline_of
from made_problems import llama, tiny, with_encodings, with_halves
from pytest import approx

PORTFOLIO = Portfolio(cache=None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 100_000), share=st.floats(0, 1))
def test_the_bound_is_never_above_the_optimum_and_no_plan_is_below_it(seed, share):
    problem = tiny(seed)
    assume(len(problem.values) <= 13)
    frontier = Portfolio().frontier(problem, 50)
    low, high = frontier[-1].peak_bytes, frontier[0].peak_bytes
    budget = int(low - 1 + (high - low) * share)
    optimum = least_seconds(problem, budget)
    assume(optimum is not None)
    assert lower_bound_seconds(problem, budget) <= max(optimum - problem.seconds, 0) + 1e-9
    if budget >= low:
        assert Portfolio().solve(problem, budget).seconds >= optimum - 1e-9


def with_few_codes(problem: Problem, most: int) -> Problem:
    """Return the problem without the encodings that would make more than `most` values and codes, read ones twice."""
    left, values = most - len(problem.values), []
    for value in problem.values:
        kept = []
        for encoding in value.encodings:
            if 1 + encoding.is_read_itself <= left:
                left -= 1 + encoding.is_read_itself
                kept.append(encoding)
        values.append(replace(value, encodings=tuple(kept)))
    return replace(problem, values=tuple(values))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(seed=st.integers(0, 100_000), share=st.floats(0, 1), encoded=st.sampled_from((0.3, 0.6)))
def test_with_encodings_too_the_bound_is_never_above_the_optimum_and_no_plan_below_it(seed, share, encoded):
    problem = with_few_codes(with_encodings(tiny(seed), seed, encoded), 16)
    assume(len(problem.values) <= 13)
    frontier = PORTFOLIO.frontier(problem, 50)
    low, high = frontier[-1].peak_bytes, frontier[0].peak_bytes
    budget = int(low - 1 + (high - low) * share)
    optimum = least_seconds(problem, budget)
    assume(optimum is not None)
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
