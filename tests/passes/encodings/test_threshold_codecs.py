"""Values of which backward needs a bit for each element: which they are, and training with them bit for bit."""

import copy

import lowtide
import pytest
import torch
import torch.nn.functional as F
from side_by_side import calling, differences, trained
from small_networks import Called
from step_problems import formulated
from torch import nn


def codes_of(activation, **modes):
    """The names of the codecs of what a layer before an activation made, or the activation."""
    model = Called(lambda m, x: activation(m.layer(x)).sum(), layer=nn.Linear(64, 64))
    mapping = formulated(model, (torch.randn(512, 64),), {}, costs="flops", **modes).mapping
    return {encoding.name for value in mapping.problem.values for encoding in value.encodings}


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (F.relu, "1-bit x ≤ 0"),
        (lambda x: F.threshold(x, 0.1, 20.0), "1-bit x ≤ 0.1"),
        (F.leaky_relu, "1-bit x ≤ 0"),
        (F.rrelu, "1-bit x ≤ 0"),
        (F.relu6, "2-bit 0 < x < 6"),
        (lambda x: F.hardtanh(x, -0.5, 2.0), "2-bit -0.5 < x < 2"),
        (F.hardsigmoid, "1-bit -3 < x < 3"),
        (F.hardshrink, "2-bit -0.5 ≤ x ≤ 0.5"),
        (F.softshrink, "2-bit -0.5 ≤ x ≤ 0.5"),
        (lambda x: x.clamp(min=0.5), "1-bit 0.5 ≤ x"),
        (lambda x: x.clamp(max=1), "1-bit x ≤ 1"),
        (lambda x: F.max_pool1d(F.relu(x), 2), "1-bit x ≤ 0"),
        (lambda x: x.clamp(-1, 1), "2-bit -1 ≤ x, x ≤ 1"),
        (torch.abs, "2-bit x against 0"),
        (lambda x: F.relu(x) + F.threshold(F.relu(x), 0.0, 3.0), "1-bit x ≤ 0"),
    ],
)
def test_what_is_compared_with_thresholds_alone_has_a_code_of_one_bit_or_two(activation, name):
    assert name in codes_of(activation)


@pytest.mark.parametrize(
    "activation",
    [
        lambda x: F.relu(x).square(),  # of which backward takes a product
        lambda x: F.leaky_relu(x) * F.hardsigmoid(x),  # two comparisons of one value
        lambda x: x.clamp(0, 1) * x.clamp(0.5, 1),  # this too
    ],
)
def test_what_is_read_otherwise_too_has_none(activation):
    assert not any("x" in name for name in codes_of(activation))


ACTIVATIONS = (
    lambda m, x: F.leaky_relu(x, 0.1),
    lambda m, x: F.relu6(x),
    lambda m, x: F.hardsigmoid(x),
    lambda m, x: F.dropout(F.relu(x)),
    lambda m, x: m.frozen(F.relu(x)),
    lambda m, x: x.clamp(-0.5, 0.5),
    lambda m, x: F.interpolate(F.max_pool2d(F.relu(x), 2), scale_factor=2),
)


def residual(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Convolutions whose activations nothing but their sum and their own backward reads."""
    for layer, activation in zip(m.layers, ACTIVATIONS, strict=True):
        x = x + activation(m, layer(x))
    return x.mean((2, 3)).square().mean()


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in ACTIVATIONS)
    frozen = nn.BatchNorm2d(8).requires_grad_(False).eval()
    model, x = Called(residual, layers=layers, frozen=frozen), torch.randn(8, 8, 16, 16)
    return model, x, lowtide.sweep(model, (x,), count=40, costs="flops")


def test_at_a_tight_budget_bits_are_kept_and_training_is_exact(case):
    model, x, plans = case
    plan = max(plans, key=lambda plan: len(plan.encoded))
    names = {plan.problem.values[value].encodings[number].name for value, number in plan.encoded}
    assert names == {"1-bit x ≤ 0", "2-bit 0 < x < 6", "1-bit -3 < x < 3", "2-bit -0.5 ≤ x, x ≤ 0.5"}
    # two of seven in two bits: of the clamp, and of ReLU6 to mark NaN
    assert len(plan.encoded) == len(ACTIVATIONS) and plan.packed_bytes == plan.original_bytes * 9 // (7 * 32)
    spoilt = x.clone()
    spoilt.view(-1)[::97] = torch.nan  # which torch's backward takes for inside or outside, by place
    for batch in (x, spoilt):
        report = lowtide.verify(model, plan.peak_bytes, (batch,), costs="flops")
        assert report.ok, str(report)
        assert report.measured_peak_bytes == report.plan.peak_bytes
    x = spoilt
    small = lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (x,), costs="flops")
    assert "lowtide.pack_inside.default(" in small.code
    assert not differences(trained(copy.deepcopy(model), calling(x)), trained(small, calling(x)))


def test_recomputed_forward_reads_no_placeholders(case):
    """Plans of smaller budgets run forward again: every step of theirs is eager's too."""
    model, x, plans = case
    slower = [plan for plan in plans if plan.encoded and plan.extra_seconds > 0]
    for plan in slower[:: max(len(slower) // 3, 1)]:
        small = lowtide.rewrite(copy.deepcopy(model), plan.peak_bytes, (x,), costs="flops")
        assert not differences(trained(copy.deepcopy(model), calling(x)), trained(small, calling(x)))
    assert slower
