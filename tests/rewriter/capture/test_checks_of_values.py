"""Checks of values that only raise cost no decision where the kernel checks too, and are repeated at each step."""

import copy

import lowtide
import pytest
import torch
from side_by_side import assert_trains_alike
from small_networks import Called
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")


def rows() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))


def deviating(m, x):
    y = m.net(x)
    return functional.gaussian_nll_loss(y, x, y.square() + 0.1, full=True)


def asserted(m, x):
    y = m.net(x)
    torch._assert_async((y > -1e9).all())
    torch._assert((y < 1e9).all(), "too large")
    torch._check(bool((y < 1e9).all()))
    torch._check(x.shape[0] == 8)
    assert (x < 1e9).all()
    return y


CHECKED = {
    "one hot": lambda m, x: functional.one_hot(m.net(x).argmax(-1), 4) * m.net(x),
    "one hot of an argument": lambda m, x: functional.one_hot((x[:, 0] > 0).long(), 4) * m.net(x),
    "gaussian": deviating,
    "gaussian module": lambda m, x: nn.GaussianNLLLoss(reduction="sum")(m.net(x), x, m.net(x).exp()),
    "assertions": asserted,
    "embedding": lambda m, x: m.table(m.net(x).argmax(-1)),
    "cross-entropy": lambda m, x: functional.cross_entropy(m.net(x), m.net(x).argmax(-1)),
    "probabilities": lambda m, x: functional.binary_cross_entropy(m.net(x).sigmoid(), m.net(x).sigmoid().detach()),
    "drawn": lambda m, x: m.net(x) * torch.multinomial(m.net(x).softmax(-1), 1),
}


@pytest.mark.parametrize("check", CHECKED)
def test_a_check_of_what_is_computed_trains_alike(check):
    model = Called(CHECKED[check], net=net(), table=nn.Embedding(4, 4))
    small = assert_trains_alike(model, rows(), budget="1MiB")
    assert len(small.lowtide.steps) == 1


def test_one_hot_looks_at_no_class_and_refuses_one_that_is_out_of_range():
    model = Called(lambda m, x, i: functional.one_hot(i, 4) * m.net(x), net=net())
    small = lowtide.rewrite(copy.deepcopy(model), "1MiB", costs="flops")
    for start in (0, 2):
        index = (torch.arange(8) + start) % 4
        torch.manual_seed(0)
        expected = model(rows(), index)
        torch.manual_seed(0)
        assert torch.equal(small(rows(), index), expected)
    planned = small.lowtide.planned.measured.captured
    assert planned.guard is None and len(small.lowtide.steps) == 1
    for wrong in (4, -1):
        with pytest.raises(RuntimeError):
            small(rows(), torch.full((8,), wrong))


@pytest.mark.parametrize("classes", [-1, 4])
def test_one_hot_of_few_or_no_classes(classes):
    for index in (torch.tensor([0, 2, 1, 0, 3, 3, 0, 1]), torch.zeros(8, dtype=torch.long)):
        model = Called(lambda m, x, i: m.net(x).sum(-1) * functional.one_hot(i, classes).sum(), net=net())
        assert_trains_alike(model, rows(), index, budget="1MiB")
    nothing = torch.zeros(0, dtype=torch.long)
    model = Called(lambda m, x, i: m.net(x) + functional.one_hot(i, 4).sum(), net=net())
    assert_trains_alike(model, rows(), nothing, budget="1MiB")


def test_an_assertion_that_fails_later_raises_as_in_eager():
    def forward(m, x):
        torch._assert_async((m.net[0](x) > m.least).all(), "too small")
        return m.net(x)

    model = Called(forward, net=net(), least=torch.tensor(-1e9))
    small = lowtide.rewrite(copy.deepcopy(model), "1MiB", costs="flops")
    small(rows()).sum().backward()
    for module in (model, small):
        module.least.fill_(1e9)
        with pytest.raises((RuntimeError, lowtide.CaptureError), match="too small"):
            module(rows())
