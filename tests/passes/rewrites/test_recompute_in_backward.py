"""Steps whose backward recomputes what it can from values that it reads anyway: the same gradients from fewer kept
values.
"""

import copy
import json
from itertools import pairwise

import lowtide
import pytest
import torch
from lowtide.passes.rewrites.recompute_in_backward import RecomputeInBackward
from lowtide.rewriter.plan.plan_file import load_plan, save_plan
from lowtide.rewriter.plan.solve import frontier_of, solve_step
from lowtide.rewriter.plan.step_problem import Variants
from lowtide.rewriter.text.byte_sizes import Share
from lowtide.solvers.bound import lower_bound_seconds
from lowtide.solvers.keep_all import KeepAll
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.problem_file import problem_of
from lowtide.solvers.problem.simulate import baseline_of, make_plan
from pass_checks import captured_graph, compare_with_golden
from side_by_side import calling, differences, trained
from small_networks import Called
from step_problems import variants_of
from torch import nn
from torch.nn import functional

OPTIONS = {"fidelity": "approximate", "costs": "flops", "error_budget": 1e-3}


class Gated(nn.Module):
    """A residual gated unit with dropout and a norm whose statistics change."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate, self.up = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)
        self.down, self.dropout = nn.Linear(4 * width, width), nn.Dropout(0.1)

    def forward(self, x):
        y = self.norm(x)
        return x + self.dropout(self.down(functional.silu(self.gate(y)) * self.up(y)))


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    return nn.Sequential(*(Gated() for _ in range(8)), nn.Linear(32, 8)).train(), torch.randn(256, 32)


@pytest.fixture(scope="module")
def variants(case):
    model, x = case
    return variants_of(model, (x,), {}, **OPTIONS)


def test_before_and_after(golden):
    torch.manual_seed(0)
    model = Called(
        lambda m, x: m.down(functional.silu(m.gate(x)) * m.up(x)),
        **{name: nn.Linear(8, 8, bias=False) for name in ("gate", "up", "down")},
    )
    compare_with_golden(golden, RecomputeInBackward(), captured_graph(model, torch.randn(4, 8)))


def recomputed(variants: Variants) -> set[str]:
    """Return the operations that backward recomputes, by the names of forward's."""
    as_captured, *recomputing = variants
    before = {op.name for op in as_captured.problem.ops}
    return {op.name for variant in recomputing for op in variant.problem.ops} - before


def recomputing_problem(variants: Variants):
    """Return the problem of the step in which backward recomputes more."""
    _, recomputing = variants
    return recomputing.problem


def of_network(function, *args, **parts):
    """Return the step problem of a function of a module."""
    return variants_of(Called(function, **parts), args, {}, **OPTIONS)


def test_a_gated_unit_keeps_its_gate_and_its_value_and_neither_their_product_nor_the_activation(variants):
    assert {name.split("_")[0] for name in recomputed(variants)} == {"mul", "silu"}
    plans = [make_plan(w.problem, KeepAll().schedule(w.problem, 0), solver="keep_all") for w in variants]
    kept = [plan.live_bytes[plan.schedule.forward_length - 1] - plan.problem.resident_bytes for plan in plans]
    wide = 256 * 128 * 4
    assert kept[0] - kept[1] >= 2 * 2 * wide


def test_its_gradients_are_the_same_bits_where_nothing_is_encoded(case, variants):
    model, x = case
    problem = recomputing_problem(variants)
    plan = make_plan(problem, KeepAll().schedule(problem, 0), solver="keep_all")
    small = lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (x,), plan=plan, **OPTIONS)
    assert small.plan.fingerprint == problem.fingerprint
    assert not differences(trained(copy.deepcopy(model), calling(x)), trained(small, calling(x)))


def test_a_plan_of_it_is_taken_where_it_is_faster_and_keeps_its_budgets(case, variants):
    model, x = case
    plan = solve_step(variants, Share(0.32), Portfolio()).plan
    alone = Portfolio().solve(variants.as_captured.problem, plan.budget_bytes or 0)
    assert plan.problem.reference == baseline_of(variants.as_captured.problem)
    assert plan.seconds < alone.seconds and plan.peak_bytes <= plan.budget_bytes
    report = lowtide.verify(model, "32%", (x,), **OPTIONS)
    assert report.ok, str(report)
    assert report.plan.fingerprint == plan.fingerprint and report.measured_peak_bytes == report.plan.peak_bytes


def test_what_it_recomputes_counts_as_extra_time(variants):
    problem, reference = recomputing_problem(variants), baseline_of(variants.as_captured.problem)
    plan = make_plan(problem, KeepAll().schedule(problem, 0), solver="keep_all")
    assert plan.baseline_seconds == reference.seconds and plan.baseline_peak_bytes == reference.peak_bytes
    assert plan.extra_seconds == pytest.approx(problem.seconds - reference.seconds) and plan.extra_seconds > 0
    assert lower_bound_seconds(problem, plan.peak_bytes) == pytest.approx(plan.extra_seconds, rel=1e-6)


def test_where_a_budget_is_met_without_extra_time_nothing_is_recomputed(variants):
    plan = solve_step(variants, Share(1.0), Portfolio()).plan
    assert plan.problem.reference is None and not plan.encoded


def test_a_sweep_has_plans_of_both_and_none_that_another_beats(variants):
    plans = frontier_of(variants, 12, Portfolio(), None)
    assert {plan.problem.reference is None for plan in plans} == {True, False}
    assert len(plans) <= 12
    for higher, lower in pairwise(plans):
        assert higher.peak_bytes > lower.peak_bytes and higher.seconds < lower.seconds


def test_a_saved_plan_of_it_is_taken_again(case, variants, tmp_path):
    model, x = case
    plan = solve_step(variants, Share(0.32), Portfolio()).plan
    save_plan(plan, tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").problem == plan.problem == problem_of(json.loads(plan.problem.to_json()))
    small = lowtide.rewrite(copy.deepcopy(model), "32%", (x,), plan=tmp_path / "plan.json", **OPTIONS)
    assert small.plan.schedule == plan.schedule
    copied = copy.deepcopy(small)
    copied(x).sum().backward()
    assert copied.plan.schedule == plan.schedule


def test_a_budget_below_all_variants_is_refused_with_the_smallest_of_their_peaks(variants):
    with pytest.raises(lowtide.InfeasibleBudget, match="the smallest peak found") as refused:
        solve_step(variants, variants.as_captured.problem.resident_bytes + 1000, Portfolio())
    smallest = [Portfolio().frontier(variant.problem, 2)[-1].peak_bytes for variant in variants]
    assert refused.value.smallest_bytes == min(smallest)


def test_what_draws_random_numbers_multiplies_or_compares_is_not_recomputed():
    linear = nn.Linear(16, 16)
    x = torch.randn(8, 16, requires_grad=True)
    assert not recomputed(of_network(lambda m, x: m.linear(functional.relu(m.linear(x))), x, linear=linear))
    assert not recomputed(of_network(lambda m, x: m.linear(m.linear(x)), x, linear=linear))
    noisy = of_network(lambda m, x: m.linear((y := m.linear(x)) * torch.rand_like(y) * y), x, linear=linear)
    assert not any("rand" in name for name in recomputed(noisy))


@pytest.mark.parametrize("is_changed", [False, True])
def test_what_reads_a_buffer_is_recomputed_unless_forward_changes_it(is_changed):
    linear, x = nn.Linear(16, 16), torch.randn(8, 16, requires_grad=True)

    def squares(module, x):
        y = module.linear(x)
        moved = y + module.offset
        result = module.linear(moved * moved + y * y)
        if is_changed:
            module.offset.add_(1.0)
        return result

    names = recomputed(of_network(squares, x, linear=linear, offset=torch.ones(16)))
    assert any(name.startswith("add") for name in names) != is_changed


def test_what_is_returned_is_read_and_not_recomputed():
    linear, x = nn.Linear(16, 16), torch.randn(8, 16, requires_grad=True)

    def function(module, x):
        y = module.linear(x)
        z = functional.silu(y)
        return module.linear(z), z

    kept = of_network(function, x, linear=linear)
    assert not any("silu_default" in name and "backward" not in name for name in recomputed(kept))
