"""The budget leaves room for the bytes of a loss outside of the module."""

import copy
from collections.abc import Callable
from typing import Any

import lowtide
import pytest
import torch
from side_by_side import differences, rewritten, smallest_bytes, trained
from small_networks import Called, batch, deep
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, ROWS = 32, 256
LABELS, TARGET = torch.zeros(ROWS, dtype=torch.long), torch.zeros(ROWS, WIDTH)


def network() -> nn.Module:
    """A network whose outputs are as large as the values kept of a layer."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(6)))


def data() -> Tensor:
    return batch(WIDTH, ROWS)


def held_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """The bytes present before a step."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers(), *inputs))


def measured(module: nn.Module, loss: Callable[[Any], Tensor], *inputs: Tensor) -> int:
    """The peak of a step whose loss is made outside, everything counted."""

    def step() -> None:
        loss(module(*inputs)).backward()

    step()
    module.zero_grad()
    return lowtide.measure_peak(step) + held_bytes(module, *inputs)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "square": lambda out: out.square().mean(),
    "cross-entropy": lambda out: functional.cross_entropy(out, LABELS),
    "L1": lambda out: functional.l1_loss(out, TARGET),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("share", ["100%", "85%", "70%", "60%"])
def test_the_budget_holds_for_the_whole_step_with_a_loss_outside(share, loss):
    small = lowtide.rewrite(network(), share, (data(),), costs="flops")
    assert measured(small, LOSSES[loss], data()) <= small.plan.budget_bytes
    assert any("left for a loss computed outside" in note for note in small.plan.notes)


def test_a_share_is_one_of_what_eager_takes_with_its_loss():
    small = lowtide.rewrite(network(), "100%", (data(),), costs="flops")
    assert small.plan.budget_bytes == measured(network(), LOSSES["square"], data()) > small.plan.baseline_peak_bytes
    assert small.plan.extra_seconds == 0


@pytest.mark.parametrize("share", ["100%", "70%"])
def test_the_plan_states_the_peak_of_the_step_itself(share):
    small, x = lowtide.rewrite(network(), share, (data(),), costs="flops"), data()
    incoming = torch.ones(ROWS, WIDTH)

    def step() -> None:
        out = small(x)
        out.backward(incoming)

    peak = lowtide.measure_peak(step) + held_bytes(small, x) + incoming.nbytes
    assert peak == small.plan.peak_bytes <= small.plan.budget_bytes


def test_a_loss_inside_leaves_nothing():
    module = Called(lambda m, x: m.net(x).square().mean(), net=network())
    plan = lowtide.plan(module, "80%", (data(),), costs="flops")
    assert plan.budget_bytes == int(0.8 * plan.baseline_peak_bytes) and not any("loss" in note for note in plan.notes)


def test_where_there_is_no_room_the_step_itself_keeps_the_budget():
    module = Called(lambda m, x: m.net(x).repeat(1, 8), net=network())
    budget = smallest_bytes(module, data())
    plan = lowtide.plan(module, budget, (data(),), costs="flops")
    assert plan.peak_bytes <= budget
    assert any("holds for the module's own step" in note for note in plan.notes)


def test_training_is_the_same_with_room_and_without():
    module = Called(lambda m, x: m.net(x).repeat(1, 8), net=deep())

    def step(m: nn.Module) -> Tensor:
        loss = m(batch()).square().mean()
        loss.backward()
        return loss.detach()

    for budget in (smallest_bytes(module, batch()), "80%"):
        small = rewritten(module, batch(), budget=budget)
        assert differences(trained(copy.deepcopy(module), step), trained(small, step)) == []


def test_losses_on_several_outputs():
    module = Called(lambda m, x: (h := m.net(x), m.head(h)), net=network(), head=nn.Linear(WIDTH, WIDTH))
    for share in ("100%", "80%"):
        small = lowtide.rewrite(copy.deepcopy(module), share, (data(),), costs="flops")
        peak = measured(small, lambda out: out[0].square().mean() + out[1].square().mean(), data())
        assert peak <= small.plan.budget_bytes + 16  # the sum of the losses, and more than one of their gradients


def test_a_loss_in_float32_on_outputs_in_half_precision():
    module = network().to(torch.bfloat16)
    x = data().to(torch.bfloat16)
    for share in ("100%", "80%"):
        small = lowtide.rewrite(copy.deepcopy(module), share, (x,), costs="flops")
        peak = measured(small, lambda out: functional.cross_entropy(out.float(), LABELS), x)
        assert peak <= small.plan.budget_bytes
