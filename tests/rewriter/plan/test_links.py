"""Blocks that are one node of autograd's graph: the same bits, the peak exact, and no later than hooks can bear."""

import copy

import lowtide
import pytest
import torch
from lowtide.rewriter.capture.autograd_graph import nodes_behind
from lowtide.rewriter.plan import links
from side_by_side import assert_exact_everywhere, backward_of, calling, differences, plans, rewritten, trained
from small_networks import deep
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def data(rows: int = 32) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(1))


def program_of(small):
    (ready,) = [ready for step in small.lowtide.steps for ready in step.plans]
    return ready.program


def nodes(y: torch.Tensor) -> int:
    """The number of nodes of a rewritten step behind an output."""
    return sum("_Node" in type(node).__name__ for node in nodes_behind(y))


def with_gradients(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    return module


def peak_above_resident(small, x: torch.Tensor) -> int:
    """The measured peak of a step with what is there before it, after one step that warms up."""
    before = {p: None if p.grad is None else p.grad.clone() for p in small.parameters()}
    for _ in range(2):
        for parameter, gradient in before.items():
            parameter.grad = None if gradient is None else gradient.clone()
        measured = lowtide.measure_peak(lambda: backward_of(small(x)))
    return measured + small.plan.problem.resident_bytes


def test_a_small_step_is_one_node_with_eagers_bits_and_an_exact_peak():
    small = rewritten(deep(), data(), budget="100%")
    program = program_of(small)
    assert program.link_sizes == (len(program.forward),) != (1,)
    assert nodes(small(data())) == 1
    assert_exact_everywhere(deep(), data())


def test_recomputation_and_random_numbers_are_right_within_one_node():
    eager = deep()
    small = rewritten(eager, data())
    assert len(program_of(small).link_sizes) < len(program_of(small).forward) and small.plan.extra_seconds
    assert differences(trained(eager, calling(data())), trained(small, calling(data()))) == []


@pytest.mark.parametrize("count", [0, 2, 5])
def test_the_peak_is_exact_where_gradients_are_added_to_others(count):
    frontier = plans(with_gradients(deep()), data(), count=6)
    budget = frontier[min(count, len(frontier) - 1)].peak_bytes
    eager = with_gradients(deep())
    small = lowtide.rewrite(with_gradients(copy.deepcopy(eager)), budget, (data(),), costs="flops")
    assert peak_above_resident(small, data()) == small.plan.peak_bytes <= budget
    for module in (eager, with_gradients(small)):
        torch.manual_seed(0)
        module(data()).sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(eager.parameters(), small.parameters(), strict=True))


def test_joining_does_not_raise_the_peak_where_gradients_are_added_to_others(monkeypatch):
    """Wide layers on few rows: their gradients are what takes memory, and none may wait for the next."""
    model, x = with_gradients(nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)))), data(2)
    x = torch.randn(2, 64)
    joined = lowtide.rewrite(model, "100%", (x,), costs="flops")
    monkeypatch.setattr(links, "_MOST_BYTES", -1)
    apart = lowtide.rewrite(with_gradients(copy.deepcopy(model)), "100%", (x,), costs="flops")
    assert joined.plan.peak_bytes == apart.plan.peak_bytes
    assert peak_above_resident(joined, x) == joined.plan.peak_bytes
    assert set(program_of(apart).link_sizes) == {1}


def test_a_link_returns_no_more_gradients_than_a_bucket_of_distributed_training_holds(monkeypatch):
    monkeypatch.setattr(links, "_MOST_BYTES", 8 * 1024)
    eager = deep()
    small = rewritten(eager, data(), budget="100%")
    program = program_of(small)
    assert len(program.link_sizes) > 1 and sum(program.link_sizes) == len(program.forward)
    assert nodes(small(data())) == len(program.link_sizes)
    assert differences(trained(eager, calling(data())), trained(small, calling(data()))) == []


def test_hooks_that_wait_for_gradients_have_a_node_for_each_block():
    small = rewritten(deep(), data(), budget="100%")
    blocks = len(program_of(small).forward)
    seen = []

    def let_go(parameter):
        seen.append(sum(p.grad is not None for p in small.parameters()))
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(let_go) for p in small.parameters()]
    y = small(data())
    assert nodes(y) == blocks
    y.sum().backward()
    assert seen == [1] * len(list(small.parameters()))
    for handle in handles:
        handle.remove()
    assert nodes(small(data())) == 1


def test_the_code_says_which_blocks_are_one_node():
    small = rewritten(deep(), data(), budget="100%")
    assert f"# Blocks that are one node of autograd's graph: 0–{len(program_of(small).forward) - 1}" in small.code


def test_a_plan_with_joined_blocks_goes_through_a_file(tmp_path, monkeypatch):
    eager = with_gradients(deep())
    small = lowtide.rewrite(copy.deepcopy(eager), "100%", (data(),), costs="flops")
    for parameter in small.parameters():
        parameter.grad = torch.ones_like(parameter)
    small(data())
    lowtide.save_plan(small.plan, tmp_path / "plan.json")
    for most_bytes in (25 * 2**20, -1):  # joined as before, and not at all
        monkeypatch.setattr(links, "_MOST_BYTES", most_bytes)
        other = with_gradients(copy.deepcopy(eager))
        reloaded = lowtide.rewrite(other, small.plan.peak_bytes, (data(),), costs="flops", plan=tmp_path / "plan.json")
        assert reloaded.plan.peak_bytes == small.plan.peak_bytes == peak_above_resident(reloaded, data())
        assert differences(trained(eager, calling(data())), trained(reloaded, calling(data()))) == []
