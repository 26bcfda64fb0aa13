"""Steps under anomaly detection, and on tensors made in inference mode."""

import copy

import lowtide
import pytest
import torch
from side_by_side import assert_trains_alike, backward_of, differences, trained
from small_networks import Called
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")


def rows() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 4))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("check_nan", [True, False])
def test_steps_are_planned_and_run_under_anomaly_detection(check_nan):
    def step(module):
        with torch.autograd.detect_anomaly(check_nan=check_nan):
            backward_of(module(rows()))

    model = net()
    small = lowtide.rewrite(copy.deepcopy(model), "1MiB", costs="flops")
    assert differences(trained(model, step), trained(small, step)) == []
    assert_trains_alike(model, rows(), step=step)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in")
def test_a_gradient_that_is_no_number_is_found_as_in_eager():
    model = Called(lambda m, x: m.net(x).sqrt(), net=net())
    small = lowtide.rewrite(copy.deepcopy(model), "1MiB", costs="flops")
    for module in (model, small, small):
        with torch.autograd.detect_anomaly(check_nan=True):
            loss = module(rows()).sum()
            with pytest.raises(RuntimeError, match="returned nan values"):
                loss.backward()


def in_inference_mode(make):
    with torch.inference_mode():
        return make()


@pytest.mark.parametrize("first", ["inference", "plain"])
def test_arguments_made_in_inference_mode_are_taken_as_plain_ones(first):
    # Eager refuses what it would have to keep for backward of these; the rewritten step keeps no version of them.
    model = Called(lambda m, x, i: m.net(x + m.table(i)), net=net(), table=nn.Embedding(5, 4))
    small = lowtide.rewrite(copy.deepcopy(model), "1MiB", costs="flops")
    index = lambda: torch.arange(8) % 5  # noqa: E731
    kinds = [lambda make: make(), in_inference_mode]
    for kind in kinds if first == "plain" else reversed(kinds):
        model.zero_grad(), small.zero_grad()
        torch.manual_seed(0)
        model(rows(), index()).sum().backward()
        torch.manual_seed(0)
        small(kind(rows), kind(index)).sum().backward()
        pairs = zip(model.parameters(), small.parameters(), strict=True)
        assert all(torch.equal(actual.grad, expected.grad) for actual, expected in pairs)
    assert len(small.lowtide.steps) == 1


def test_a_call_in_inference_mode_runs_the_original():
    small = lowtide.rewrite(net(), "1MiB", costs="flops")
    with torch.inference_mode():
        result = small(rows())
    assert result.is_inference() and small.plan is None
