"""Tensors that are neither parameters, buffers nor arguments: what is made of them, and they themselves, may change."""

import copy

import lowtide
import numpy
import pytest
import torch
from side_by_side import assert_trains_alike
from small_networks import Called
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

CONSTANT = torch.arange(4.0)


def rows() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))


def written_in_part(m, x):
    weights = CONSTANT * 1
    weights[1:] = 0
    weights[0] = x.sum().detach()
    return m.net(x) * weights


def of_an_array(m, x):
    weights = torch.from_numpy(numpy.ones(4, dtype=numpy.float32))
    weights.add_(1)
    return m.net(x) * weights


def of_numbers(m, x):
    weights = torch.FloatTensor([1.0, 2.0, 3.0, 4.0])
    weights += 1
    return m.net(x) * weights


def copied(m, x):
    weights = copy.deepcopy(CONSTANT)
    return m.net(x) * weights.mul_(2) + copy.deepcopy(x)


MADE = {
    "a copy": lambda m, x: m.net(x) + CONSTANT.clone().mul_(2),
    "the same shape": lambda m, x: m.net(x) + torch.zeros_like(CONSTANT).add_(1),
    "part": written_in_part,
    "of an array": of_an_array,
    "of numbers": of_numbers,
    "a deep copy": copied,
}


@pytest.mark.parametrize("made", MADE)
def test_what_is_made_of_a_constant_may_be_changed_in_place(made):
    before = CONSTANT.clone()
    assert_trains_alike(Called(MADE[made], net=net()), rows(), budget="1MiB")
    assert torch.equal(CONSTANT, before)


def averaged(m, x):
    y = m.net(x)
    m.seen.mul_(0.9).add_(y.detach().mean(0), alpha=0.1)
    m.seen[0] = 0
    return y + m.seen


def in_a_list(m, x):
    return m.net(x) + m.kept[0].add_(1)


def test_a_tensor_that_a_module_holds_unregistered_changes_as_in_eager():
    model = Called(averaged, net=net())
    model.seen = torch.zeros(4)
    small = assert_trains_alike(model, rows(), budget="1MiB")
    assert bool(small.seen.any()) and not bool(model.seen.any())
    model = Called(in_a_list, net=net())
    model.kept = [torch.zeros(4)]
    assert_trains_alike(model, rows(), budget="1MiB")


def test_a_decision_by_a_constant_is_made_again_in_each_step():
    def forward(m, x):
        y = m.net(x) if m.count < 2 else m.net(x) * 2
        m.count.add_(1)
        return y

    model = Called(forward, net=net())
    model.count = torch.zeros(())
    assert_trains_alike(model, rows(), budget="1MiB")


def test_a_change_of_what_no_module_holds_is_refused():
    count = torch.zeros(4)
    model = Called(lambda m, x: m.net(x) + count.add_(1), net=net())
    with pytest.raises(lowtide.CaptureError, match=r"of shape \[4\] in place that no module holds; register it"):
        lowtide.plan(model, "1MiB", (rows(),))
    assert not bool(count.any())
