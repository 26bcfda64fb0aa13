"""Modules that get their final parameters and buffers in the first forward: it runs in eager, the next is planned."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import lowtide
import pytest
import torch
import torch.ao.quantization as quantization
from lowtide.rewriter.errors import LowtideWarning, Unsettled
from side_by_side import calling, differences, trained
from small_networks import Called
from torch import nn

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Lazy and observed modules have hooks of their own; test_module.py asserts the warning.
    pytest.mark.filterwarnings("ignore:hooks on inner modules"),
]


def rows() -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.2), nn.Linear(16, 4))


@contextmanager
def deprecations_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        yield


def quantized(backend: str = "fbgemm") -> nn.Module:
    """Weights and activations are rounded to 8 bits, to ranges that forward observes."""
    with deprecations_ignored():
        model = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)).train()
        model.qconfig = quantization.get_default_qat_qconfig(backend)  # pyright: ignore
        return quantization.prepare_qat(model)


def resized(m, x):
    if m.scale.numel() == 0:
        m.scale.resize_(4).zero_()
    return m.net(x) + m.scale.add_(1)


def replaced(m, x):
    m.scale = torch.zeros(4) if m.scale.numel() == 0 else m.scale
    return m.net(x) + m.scale


def registered(m, x):
    if not hasattr(m, "other"):
        m.register_buffer("other", torch.ones(4))
    return m.net(x) + m.other


def grown(m, x):
    if not hasattr(m, "other"):
        m.other = nn.Linear(4, 4)
    return m.net(x) + m.other(x)


SETTLING = {
    "quantization-aware": (quantized, "changes the shape of buffer 1.weight_fake_quant"),
    "resized": (lambda: Called(resized, net=net(), scale=torch.zeros(0)), r"buffer scale from \[0\] to \[4\]"),
    "replaced": (lambda: Called(replaced, net=net(), scale=torch.zeros(0)), "in the place of scale, which was"),
    "registered": (lambda: Called(registered, net=net()), "in the place of other, which was None"),
    "grown": (lambda: Called(grown, net=net()), "forward makes a parameter, in the root module"),
}


@pytest.mark.parametrize("kind", SETTLING)
def test_the_first_forward_runs_in_eager_with_a_warning_and_the_next_is_planned(kind):
    make, what = SETTLING[kind]
    model = make()
    small = lowtide.rewrite(copy.deepcopy(model), "1MiB", costs="flops")
    with pytest.warns(LowtideWarning, match=f"runs the original forward, within no budget: .*{what}"):
        seen = trained(small, calling(rows()), steps=1)
    with deprecations_ignored():
        assert differences(trained(model, calling(rows()), steps=1), seen) == [] and small.plan is None
        with warnings.catch_warnings():
            warnings.simplefilter("error", LowtideWarning)
            assert differences(trained(model, calling(rows())), trained(small, calling(rows()))) == []
    assert small.plan is not None and len(small.lowtide.steps) == 1


@pytest.mark.parametrize("kind", SETTLING)
def test_with_sample_arguments_it_is_refused_and_left_as_it_was(kind):
    make, what = SETTLING[kind]
    model = make()
    before = copy.deepcopy(model.state_dict())
    with (
        deprecations_ignored(),
        pytest.raises(Unsettled, match=rf"{what}.* once a batch has gone through the original"),
    ):
        lowtide.rewrite(model, "1MiB", (rows(),), costs="flops")
    assert model.state_dict().keys() == before.keys() and not hasattr(model, "other")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_buffer_of_another_shape_in_each_step_is_never_planned_and_stays_right():
    def forward(m, x):
        m.seen.resize_(m.seen.numel() + 1).zero_()
        return m.net(x)

    model = Called(forward, net=net(), seen=torch.zeros(0))
    small = lowtide.rewrite(copy.deepcopy(model), "1MiB", costs="flops")
    with pytest.warns(LowtideWarning, match="changes the shape of buffer seen"):
        assert differences(trained(model, calling(rows())), trained(small, calling(rows()))) == []
    assert small.seen.numel() == 3 and small.plan is None


def test_an_argument_whose_shape_forward_changes_is_refused():
    model = Called(lambda m, x, seen: m.net(x) + seen.resize_(4).fill_(1.0), net=net())
    with pytest.raises(lowtide.CaptureError, match=r"changes the shape of argument 0.1 from \[2\] to \[4\]; return it"):
        lowtide.rewrite(model, "1MiB", (rows(), torch.ones(2)), costs="flops")


def test_settled_quantization_is_planned_and_its_switches_are_followed():
    with deprecations_ignored():
        model = quantized("qnnpack")
        model(rows())
        small = lowtide.rewrite(copy.deepcopy(model), "1MiB", (rows(),), costs="flops")
        for switch in (None, quantization.disable_observer, quantization.disable_fake_quant):
            for module in (model, small):
                if switch is not None:
                    module.apply(switch)
            assert differences(trained(model, calling(rows()), 2), trained(small, calling(rows()), 2)) == []


def lazy() -> nn.Module:
    with deprecations_ignored():
        return nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyBatchNorm1d(), nn.Linear(5, 2))


def test_lazy_modules_get_their_shapes_from_the_first_batch():
    seen = []
    for rewriting in (False, True):
        torch.manual_seed(0)
        model = lazy()
        module = lowtide.rewrite(model, "1MiB", costs="flops") if rewriting else model
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.manual_seed(0)
            module(rows())
        assert any("0.weight, 0.bias" in str(warning.message) for warning in caught) == rewriting
        seen.append(trained(module, calling(rows())))
        assert not rewriting or module.plan is not None
    assert differences(*seen) == []


@pytest.mark.parametrize("ask", [lowtide.rewrite, lowtide.plan])
def test_lazy_modules_without_shapes_cannot_be_planned(ask):
    with pytest.raises(
        Unsettled, match=r"0.weight, 0.bias, 2.weight of lazy modules have no shape before the first batch"
    ):
        ask(lazy(), "1MiB", (rows(),), costs="flops")


def test_a_module_that_is_lazy_itself_is_refused():
    with deprecations_ignored(), pytest.raises(lowtide.LowtideError, match="LazyLinear, which becomes another class"):
        lowtide.rewrite(nn.LazyLinear(3), "1MiB")
