"""Running statistics are updated once in each step, whatever they are: buffers, views, values made in forward."""

import pytest
import torch
from lowtide.rewriter.measure.measure_peak import measure_peak
from side_by_side import assert_trains_alike, calling, differences, rewritten, trained
from small_networks import Called
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")


def rows() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def signals() -> Tensor:
    return torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4))


def block(**options) -> list[nn.Module]:
    norm = nn.InstanceNorm1d(4, track_running_stats=True, affine=True, **options)
    return [nn.Conv1d(4, 4, 3, padding=1), norm, nn.ReLU(inplace=True)]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.3}, {"momentum": None}], ids=["default", "momentum", "none"])
def test_instance_normalization_updates_its_statistics_once(options):
    model = nn.Sequential(*block(**options), *block(**options), nn.Conv1d(4, 2, 1))
    small = assert_trains_alike(model, signals())
    assert "Recomputes" in small.code and small[1].running_var.ne(1).any() == (options.get("momentum", 1) is not None)


def stacked(m, x):
    return functional.batch_norm(m.net(x), m.stats[0], m.stats[1], training=True)


def scaled_before(m, x):
    m.stats.mul_(0.9)
    return stacked(m, x)


@pytest.mark.parametrize("forward", [stacked, scaled_before])
def test_statistics_that_are_views_of_a_buffer_are_updated_through_it(forward):
    model = Called(forward, net=net(), stats=torch.stack([torch.zeros(4), torch.ones(4)]))
    small = assert_trains_alike(model, rows())
    assert bool(small.stats[0].any())


def of_this_step(m, x):
    mean, variance = torch.zeros(4), torch.ones(4)
    y = functional.batch_norm(m.net(x), mean, variance, training=True)
    return (m.net(y) * mean).exp() * variance


def of_parameters(m, x):
    mean, variance = m.net[0].bias.detach()[:4].clone(), m.net[0].weight.detach()[:4, 0].abs()
    y = functional.batch_norm(m.net(x), mean, variance, training=True)
    return (m.net(y) * mean).exp() * variance


def repeated(m, x):
    mean, variance = m.mean.repeat(2), m.variance.repeat(2)
    y = functional.batch_norm(m.net(x), mean, variance, training=True)
    m.mean.copy_(mean.view(2, 2).mean(0))
    return y


@pytest.mark.parametrize("forward", [of_this_step, of_parameters, repeated])
def test_statistics_that_are_made_in_forward_are_read_as_they_were_left(forward):
    assert_trains_alike(Called(forward, net=net(), mean=torch.zeros(2), variance=torch.ones(2)), rows())


def test_statistics_that_are_views_of_an_argument_are_updated_through_it():
    model = Called(lambda m, x, stats: functional.batch_norm(m.net(x), stats[0], stats[1], training=True), net=net())
    small = rewritten(model, rows(), torch.ones(2, 4), budget="1MiB")
    stats, stats_small = torch.ones(2, 4), torch.ones(2, 4)
    for _ in range(3):
        assert torch.equal(small(rows(), stats_small), model(rows(), stats))
    assert torch.equal(stats, stats_small) and not torch.equal(stats, torch.ones(2, 4))


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 4)), rows()),
        (nn.Sequential(nn.Conv1d(4, 4, 3), nn.SyncBatchNorm(4, momentum=None), nn.ReLU()), signals()),
    ],
    ids=["batch", "synchronized"],
)
def test_one_plan_serves_statistics_that_are_averages_over_all_batches(model, x):
    small = rewritten(model, x)
    assert differences(trained(model, calling(x), steps=5), trained(small, calling(x), steps=5)) == []
    assert small[1].num_batches_tracked == 5 and len(small.lowtide.steps) == 1


def test_the_peak_with_averages_over_all_batches_is_predicted():
    model = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16, momentum=None), nn.GELU(), nn.Linear(16, 4))
    x = torch.randn(64, 4)
    small = rewritten(model, x, budget="100%")
    resident = sum(t.numel() * t.element_size() for t in (x, *small.parameters(), *small.buffers()))
    assert resident + measure_peak(lambda: calling(x)(small)) == small.plan.peak_bytes


def test_a_momentum_that_is_set_later_is_followed():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, momentum=None))
    small = rewritten(model, rows(), budget="1MiB")
    for momentum in (None, 0.3, None):
        for module in (model, small):
            module[1].momentum = momentum
            module(rows())
        assert torch.equal(model[1].running_var, small[1].running_var), momentum
