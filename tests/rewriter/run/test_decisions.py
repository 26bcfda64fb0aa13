"""Decisions by values: those that depend on inputs are guarded, others are checked while the step runs."""

import copy
import warnings
from typing import Any

import lowtide
import pytest
import torch
from lowtide.rewriter.errors import CaptureError, LowtideWarning
from side_by_side import assert_exact_everywhere, differences, rewritten, trained
from small_networks import Called, batch, deep
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_thread")


class Autoencoder(nn.Module):
    """Draws from a distribution that checks its arguments, and decides by what it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.norm, self.decoder = nn.Linear(16, 8), nn.BatchNorm1d(4), nn.Linear(4, 16)

    def forward(self, x: Tensor) -> Tensor:
        mean, raw = self.encoder(x).chunk(2, 1)
        chosen = Normal(mean, functional.softplus(raw) + 1e-3)
        drawn = self.norm(chosen.rsample())
        if not torch.isfinite(drawn).all():
            raise FloatingPointError("not finite")
        if raw.abs().max() > 50:
            drawn = drawn * 0.5
        error = (self.decoder(drawn) - x).square().mean()
        return error + kl_divergence(chosen, Normal(0.0, 1.0)).mean()


def test_decisions_that_go_the_same_way_keep_the_plan():
    module = Autoencoder()
    report = assert_exact_everywhere(module, batch())
    assert report.plan is not None
    small = rewritten(module, batch(), budget="100%")
    assert "require([" in small.code


def test_a_decision_that_goes_another_way_is_right_and_undoes_the_step():
    module = Autoencoder()
    small = rewritten(module, batch(), budget="100%")
    sizes = iter([1.0, 1.0, 1e3, 1.0, 1e3] * 2)

    def step(m: nn.Module) -> Tensor:
        loss = m(batch() * next(sizes))
        loss.backward()
        return loss.detach()

    assert differences(trained(copy.deepcopy(module), step, 5), trained(small, step, 5)) == []
    assert small.norm.num_batches_tracked == 5


def test_what_forward_raises_is_raised():
    module = Autoencoder()
    small = rewritten(module, batch(), budget="100%")
    x = batch()
    x[0, 0] = float("nan")
    for m in (module, small):
        with pytest.raises((FloatingPointError, ValueError)) as caught:
            m(x)
        assert not isinstance(caught.value, lowtide.LowtideError)
    # Whether arguments of distributions are checked first is a switch of the process; either way as eager leaves them.
    torch.testing.assert_close(small.norm.running_mean, module.norm.running_mean, rtol=0, atol=0, equal_nan=True)


def test_a_step_that_cannot_be_planned_runs_as_the_original():
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.net(x)
        return y * float(y.sum().item()) if (y.detach().abs().max() > 1e3).item() else y

    module = Called(forward, net=deep())
    small = rewritten(module, batch(), budget="100%")
    with torch.no_grad():
        module.net[-1].weight.mul_(1e6)
        small.net[-1].weight.mul_(1e6)
    torch.manual_seed(0)
    expected = module(batch())
    torch.manual_seed(0)
    with pytest.warns(LowtideWarning, match="runs as the original does, outside of the budget"):
        assert torch.equal(small(batch()), expected)


def test_numbers_taken_from_parameters_are_refused_by_name():
    module = Called(lambda m, x: m.net(x) * m.net[-1].weight.max().item(), net=deep())
    with pytest.raises(CaptureError, match=r"values of a parameter \(net\.4\.weight\).* takes a number"):
        lowtide.plan(module, "100%", (batch(),), costs="flops")


def test_a_truth_value_of_a_number_is_a_decision():
    module = Called(lambda m, x: m.net(x) if (m.net[-1].weight > 0).sum() else m.net(x) * 2, net=deep())
    assert_exact_everywhere(module, batch())


def test_guards_over_constants_and_buffers_that_change_hold():
    def forward(m: Any, x: Tensor, w: Tensor) -> Tensor:
        x = x * 2 if (w * torch.tensor([1.0, 0.0])).any() else x
        m.calls.add_(1)
        return m.net(x) if m.calls < 3 else m.net(x) * 0.5

    module = Called(forward, net=deep(), calls=torch.zeros((), dtype=torch.long))
    small = rewritten(module, batch(), torch.ones(2), budget="100%")
    weights = iter([torch.ones(2), torch.zeros(2), torch.ones(2), torch.zeros(2)] * 2)

    def step(m: nn.Module) -> Tensor:
        y = m(batch(), next(weights)).square().mean()
        y.backward()
        return y.detach()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert differences(trained(copy.deepcopy(module), step, 4), trained(small, step, 4)) == []


def test_a_function_that_closes_over_a_parameter_is_followed():
    inner = nn.Linear(16, 16)
    module = nn.Sequential(inner, Called(lambda m, x: functional.linear(x, inner.weight)))
    plan = lowtide.plan(module, "100%", (batch(),), costs="flops")
    assert plan.peak_bytes > 0
