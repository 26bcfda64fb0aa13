"""Budgets of known models: the smaller one never has the higher peak nor the shorter time, and bounds are below."""

from __future__ import annotations

from itertools import pairwise

import pytest
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.problem import Problem
from lowtide.solvers.problem.simulate import baseline_of
from small_models import small_model
from step_problems import formulated


def problem_of(name: str) -> Problem:
    """The scheduling problem of a small model's step."""
    model, batch = small_model(name, layers=1 if name == "gpt2" else None)
    return formulated(model, (), batch, costs="flops", outputs=("loss",)).mapping.problem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "resnet", "t5"])
def test_forty_budgets_are_monotone_in_peak_and_time(name):
    problem, portfolio = problem_of(name), Portfolio(cache=None)
    low = portfolio.frontier(problem, 100)[-1].peak_bytes
    high = baseline_of(problem).peak_bytes
    plans = [portfolio.solve(problem, low + (high - low) * step // 39) for step in range(40)]
    for step, (tighter, looser) in enumerate(pairwise(plans)):
        assert tighter.peak_bytes <= low + (high - low) * step // 39
        assert tighter.peak_bytes <= looser.peak_bytes
        assert tighter.seconds >= looser.seconds
        assert tighter.lower_bound_seconds is not None
        assert tighter.lower_bound_seconds <= tighter.extra_seconds
