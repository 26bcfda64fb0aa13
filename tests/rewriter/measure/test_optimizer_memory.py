"""An optimizer adds its state to a step while the step runs, and its temporaries when it steps."""

import copy

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import InfeasibleBudget
from lowtide.rewriter.measure.measure_peak import measure_peak
from lowtide.rewriter.measure.optimizer_memory import optimizer_needs
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p),
    "adamw, foreach": lambda p: torch.optim.AdamW(p, foreach=True),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "nadam": lambda p: torch.optim.NAdam(p),
}


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16), nn.LayerNorm(16), nn.Linear(16, 3))


def data() -> torch.Tensor:
    return torch.randn(8, 16)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_needs_are_what_the_optimizer_takes(kind):
    module = model()
    optimizer = OPTIMIZERS[kind](module.parameters())
    module(data()).sum().backward()
    before = copy.deepcopy(optimizer.state_dict())
    needs = optimizer_needs(optimizer, torch.device("cpu"))
    assert str(optimizer.state_dict()) == str(before)
    optimizer.step()
    held = {id(v): v.nbytes for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)}
    assert needs.state_bytes == sum(held.values())
    # A few bytes on top, for numbers that kernels make on the way.
    assert 0 <= needs.scratch_bytes - measure_peak(optimizer.step) <= 16


def test_the_peak_with_an_optimizer_counts_its_state_and_its_step():
    module = model()
    optimizer = torch.optim.AdamW(module.parameters(), foreach=True)
    small = lowtide.rewrite(module, "100%", (data(),), costs="flops", optimizer=optimizer)
    parameters = sum(p.nbytes for p in module.parameters())
    small(data()).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    x = data()

    def step() -> None:
        small(x).sum().backward()
        optimizer.step()

    resident = small.plan.problem.resident_bytes
    assert resident - parameters - x.nbytes == sum(
        v.nbytes for state in optimizer.state.values() for v in state.values()
    )
    assert resident + measure_peak(step) <= small.plan.peak_bytes


def test_a_budget_below_what_the_optimizer_needs_says_so():
    module = model()
    optimizer = torch.optim.AdamW(module.parameters(), foreach=True)
    with pytest.raises(InfeasibleBudget, match="the optimizer's step needs") as caught:
        lowtide.rewrite(module, "20KiB", (data(),), costs="flops", optimizer=optimizer)
    smallest = lowtide.rewrite(module, caught.value.smallest_bytes, (data(),), costs="flops", optimizer=optimizer)
    assert smallest.plan.peak_bytes == caught.value.smallest_bytes


def test_planning_with_an_optimizer_leaves_it_alone():
    module = model()
    optimizer = torch.optim.AdamW([{"params": module[0].parameters()}, {"params": module[2:].parameters(), "lr": 0.5}])
    before = copy.deepcopy(optimizer.state_dict())
    lowtide.rewrite(module, "100%", (data(),), costs="flops", optimizer=optimizer)
    assert optimizer.state_dict() == before and all(p.grad is None for p in module.parameters())


def test_an_optimizer_over_some_parameters_counts_those():
    module = model()
    all_of_it = optimizer_needs(torch.optim.AdamW(module.parameters()), torch.device("cpu"))
    module[0].requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    some = optimizer_needs(torch.optim.AdamW(trained), torch.device("cpu"))
    frozen = optimizer_needs(torch.optim.AdamW(module.parameters()), torch.device("cpu"))
    assert some == frozen and some.state_bytes < all_of_it.state_bytes
