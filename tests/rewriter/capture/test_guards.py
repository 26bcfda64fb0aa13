"""Data that the module looks at is looked at again in each call: another value is another program."""

import lowtide
import pytest
import torch
from side_by_side import differences, rewritten, trained
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")


class Looking(nn.Module):
    """A small network and a function of its result and of the inputs."""

    def __init__(self, look) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))
        self.look = look
        self.register_buffer("limit", torch.tensor(2.0))

    def forward(self, x, other):
        return self.look(self, self.net(x), other)


def data() -> torch.Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def mask(*rows: int) -> torch.Tensor:
    return torch.tensor([row in rows for row in range(6)])


LOOKS = {
    "branch": (lambda m, y, other: y * 2 if (other > m.limit).all() else y.sin(), torch.full((3,), 3.0), torch.ones(3)),
    "number": (lambda m, y, other: y * other.max().item(), torch.ones(3), torch.full((3,), 5.0)),
    "list": (
        lambda m, y, other: torch.cat([p.sin() for p in y.split(other.tolist())]),
        torch.tensor([2, 4]),
        torch.tensor([3, 3]),
    ),
    "taken by a mask": (
        lambda m, y, other: functional.mse_loss(y[other], y[other].detach() + 1),
        mask(1, 2),
        mask(3, 4, 5),
    ),
    "as many by a mask": (lambda m, y, other: y[other] * 3, mask(1, 2), mask(0, 5)),
    "selected": (lambda m, y, other: torch.masked_select(other, other > 0).sum() + y, torch.ones(3), -torch.ones(3)),
    "places": (lambda m, y, other: y[other.nonzero()[:, 0]], torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1])),
    "different ones": (lambda m, y, other: y[: len(other.unique())], torch.tensor([1, 2, 1]), torch.tensor([1, 1, 1])),
    "written by a mask": (lambda m, y, other: y.index_put((other,), torch.zeros(())), mask(1, 2), mask(3, 4, 5)),
    "repeated": (
        lambda m, y, other: y.repeat_interleave(other, 0),
        torch.tensor([1, 0, 2, 1, 0, 3]),
        torch.ones(6).long(),
    ),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_module_that_looks_at_data_stays_right_when_the_data_alternates(look):
    forward, first, second = LOOKS[look]
    model = Looking(forward)

    def step(module):
        results = []
        for seen in (first, second, first):
            y = module(data(), seen)
            y.square().sum().backward()
            results.append(y)
        return results

    small = rewritten(model, data(), first, budget="1MiB")
    assert differences(trained(model, step), trained(small, step)) == []


@pytest.mark.parametrize("look", LOOKS)
def test_the_peak_of_a_module_that_looks_at_data_is_kept(look):
    forward, data_seen, _ = LOOKS[look]
    report = lowtide.verify(Looking(forward), "100%", (data(), data_seen), costs="flops", steps=1)
    assert report.same_bits and report.within_budget, report


def test_what_does_not_vary_is_not_looked_at_again():
    model = Looking(lambda m, y, other: y if torch.arange(4).sum() == 6 else -y)
    small = rewritten(model, data(), torch.ones(1))
    assert small.lowtide.planned.measured.captured.guard is None


def test_a_buffer_that_decides_is_looked_at_again():
    model = Looking(lambda m, y, other: y * 2 if m.limit > 1 else y.sin())
    small = rewritten(model, data(), torch.ones(1), budget="1MiB")
    for limit in (2.0, 0.0, 2.0):
        for module in (model, small):
            module.limit.fill_(limit)
        torch.manual_seed(0)
        expected = model(data(), torch.ones(1))
        torch.manual_seed(0)
        assert torch.equal(small(data(), torch.ones(1)), expected)
