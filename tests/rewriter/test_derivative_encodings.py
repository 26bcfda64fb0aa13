"""Activations' derivatives kept in few bits: which values have such codes, and training with them."""

from math import inf

import lowtide
import pytest
import torch
import torch.nn.functional as F
from lowtide.rewriter.planning import Options, capture_and_pose
from small_networks import Called
from torch import nn


def codes_of(activation):
    """By value, the names of its codecs, of a layer and an activation whose sum is the loss."""
    model = Called(lambda m, x: activation(m.layer(x)).sum(), layer=nn.Linear(64, 64))
    x = torch.randn(512, 64)
    posed = capture_and_pose(model, (x,), {}, Options(fidelity="approximate", costs="flops")).posed
    return {value.name: {encoding.name for encoding in value.encodings} for value in posed.problem.values}


@pytest.mark.parametrize(
    ("activation", "value", "name"),
    [
        (torch.sigmoid, "sigmoid_default", "sigmoid"),
        (torch.tanh, "tanh_default", "tanh"),
        (F.tanhshrink, "tanh_default", "tanh"),
        (F.hardswish, "addmm_default", "hardswish"),
        (lambda x: F.elu(x, 2.0), "addmm_default", "elu"),
        (lambda x: F.elu(x, inplace=True), "elu_default", "elu"),
        (F.selu, "addmm_default", "elu"),
        (F.celu, "addmm_default", "elu"),
        (lambda x: F.softplus(x, 2.0, 5.0), "addmm_default", "softplus"),
        (lambda x: F.softplus(x, 2.0, inf), "addmm_default", "softplus"),
        (F.logsigmoid, "getitem_1", "logsigmoid"),
    ],
)
def test_what_an_activation_s_backward_alone_reads_has_codes_of_its_derivative(activation, value, name):
    assert {f"{bits}-bit {name}'" for bits in (1, 2, 3, 4, 6, 8)} <= codes_of(activation)[value]


def test_the_sign_that_logsigmoid_keeps_beside_is_exact_in_a_bit():
    assert codes_of(F.logsigmoid)["addmm_default"] == {"1-bit 0 ≤ x"}


@pytest.mark.parametrize(
    "activation",
    [
        lambda x: torch.sigmoid(x).square(),
        lambda x: F.softplus(x) * F.silu(x),
        lambda x: F.softplus(x, 0.0),  # whose derivative is a half everywhere
        lambda x: F.softplus(x, inf),  # and here no number at 0
        lambda x: F.elu(x, inf),
        lambda x: torch.ops.aten.elu(x, 1.0, 0.0),
    ],
)
def test_what_is_read_otherwise_too_or_has_no_levels_has_none(activation):
    assert not any(name.endswith("'") for names in codes_of(activation).values() for name in names)


ACTIVATIONS = (F.gelu, F.elu, torch.tanh, torch.sigmoid, F.logsigmoid, lambda x: F.softplus(x, 2.0, 5.0), F.silu)


def residual(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Layers whose activations nothing but their sum and their own backward reads."""
    for layer, activation in zip(m.layers, ACTIVATIONS, strict=True):
        x = x + activation(layer(x))
    return x.square().mean()


def test_a_step_with_such_codes_is_as_far_from_eager_s_as_predicted():
    torch.manual_seed(0)
    model = Called(residual, layers=nn.ModuleList(nn.Linear(48, 48) for _ in ACTIVATIONS))
    how = {"fidelity": "approximate", "costs": "flops", "error_budget": 0.02}
    plans = lowtide.sweep(model, (torch.randn(1024, 48),), count=30, **how)
    plan = max(plans, key=lambda one: (len(one.encoded), one.encoding_error))
    names = {plan.problem.values[value].encodings[number].name for value, number in plan.encoded}
    assert {name.partition(" ")[2] for name in names} >= {"elu'", "tanh'", "sigmoid'", "softplus'", "gelu'"}
    report = lowtide.verify(model, plan.peak_bytes, (torch.randn(1024, 48),), **how)
    assert report.ok, str(report)
    assert 0 < report.plan.encoding_error <= 0.02
    assert report.measured_peak_bytes == report.plan.peak_bytes
