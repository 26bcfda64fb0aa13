"""State that forward changes: statistics, counters, buffers put in place of others, inputs."""

from typing import Any

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import LowtideWarning
from side_by_side import assert_trains_alike, rewritten
from small_networks import Called, batch, deep
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

# Less than keeping everything takes, and room for gradients that are there before the step.
WITH_GRADIENTS = "85%"


def test_running_statistics_are_updated_once_although_recomputed():
    parts = [part for _ in range(4) for part in (nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True))]
    small = assert_trains_alike(nn.Sequential(*parts, nn.Linear(16, 2)), batch())
    assert "Recomputes" in small.code
    assert small[1].num_batches_tracked == 3


class Replacing(nn.Module):
    """Puts new tensors in the place of its buffers, as code that was not written for in-place updates does."""

    def __init__(self) -> None:
        super().__init__()
        self.net = deep()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x) - self.mean
        self.calls = self.calls + 1
        self.mean = 0.9 * self.mean + 0.1 * y.detach().mean(0)
        return y


def test_buffers_that_forward_replaces_take_their_new_values():
    small = assert_trains_alike(Replacing(), batch())
    assert small.calls == 3


def test_inputs_that_forward_changes_are_changed():
    model = Called(lambda m, x, seen: m.net(x) + seen.add_(1).sum(), net=deep())
    seen, seen_small = torch.zeros(3), torch.zeros(3)
    small = rewritten(model, batch(), seen_small)
    assert torch.equal(seen_small, torch.zeros(3))
    for seed in range(2):
        torch.manual_seed(seed)
        expected = model(batch(), seen)
        torch.manual_seed(seed)
        assert torch.equal(small(batch(), seen_small), expected)
        assert torch.equal(seen, seen_small)


def test_statistics_of_results_that_nobody_reads_are_updated():
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.first(x)
        m.norm(hidden.detach())
        m.dropout(hidden)
        return m.second(hidden)

    parts = {"first": deep(), "norm": nn.BatchNorm1d(3), "dropout": nn.RReLU(), "second": nn.Linear(3, 2)}
    small = assert_trains_alike(Called(forward, **parts), batch())
    assert small.norm.num_batches_tracked == 3 and bool(small.norm.running_mean.any())


def test_a_tensor_that_is_no_buffer_is_read_at_each_call():
    scale = torch.tensor([0.5, 2.0, 3.0])
    small = assert_trains_alike(Called(lambda m, x: m.net(x) * scale, net=deep()), batch(), budget=WITH_GRADIENTS)
    scale.mul_(2)
    torch.manual_seed(0)
    result = small(batch())
    torch.manual_seed(0)
    assert torch.equal(result, small.net(batch()) * scale)


def test_a_buffer_filled_with_noise_is_filled_with_the_same():
    model = Called(lambda m, x: m.net(x) + m.noise.normal_(), net=deep(), noise=torch.zeros(3))
    assert_trains_alike(model, batch())


def test_a_parameter_clamped_in_forward_is_clamped():
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            m.weight.clamp_(-0.1, 0.1)
        return m.net(x @ m.weight)

    assert_trains_alike(Called(forward, net=deep(), weight=nn.Parameter(torch.randn(16, 16))), batch())


def test_inputs_that_share_memory_are_followed():
    def forward(m: Any, left: Tensor, right: Tensor) -> Tensor:
        return m.net(left)[:2] + right.sum()

    base = batch()
    report = lowtide.verify(Called(forward, net=deep()), "100%", (base, base[:2]), costs="flops", steps=2)
    assert report.ok, str(report)


def test_one_normalization_used_in_two_places_is_updated_in_order():
    def forward(m: Any, x: Tensor) -> Tensor:
        hidden = m.norm(m.first(x))
        m.dropout(m.norm(hidden * 3).detach())
        return m.second(hidden)

    parts = {"first": deep(), "norm": nn.BatchNorm1d(3), "dropout": nn.Dropout(0.5), "second": nn.Linear(3, 2)}
    assert_trains_alike(Called(forward, **parts), batch())


class Listing(nn.Module):
    """Keeps a list and a count of what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen, self.count = deep(), [], 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        self.seen.append(y.detach().mean())
        self.count += 1
        return y


def test_tensors_that_forward_collects_are_collected_and_a_count_is_left_alone_and_said():
    model = Listing()
    with pytest.warns(LowtideWarning, match=r"forward sets .*count.* of the root module"):
        small = rewritten(model, batch(), budget="1MiB")
        for number in range(2):  # in another state than at first, so that it is captured again
            torch.manual_seed(number)
            expected = model(batch())
            torch.manual_seed(number)
            assert torch.equal(small(batch()), expected)
    assert torch.equal(torch.stack(small.seen), torch.stack(model.seen)) and small.count == 0
