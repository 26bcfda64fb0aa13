"""Verification compares bits where bits are promised, holds rounding against limits, and finds wrong kernels."""

import copy

import lowtide
import pytest
import torch
from lowtide.kernels.loss import linear_cross_entropy as chunked
from lowtide.rewriter.verify.comparison import Comparison
from lowtide.rewriter.verify.tolerances import ALL_GRADIENTS, ALONE, deviations_of, limit_of
from small_models import small_model
from small_networks import Called
from torch import nn
from torch.nn import functional


def verified(model, batch, **options):
    """The report on a model whose logits are not returned."""
    options = {"fidelity": "rounding", "outputs": ["loss"], "costs": "flops", "steps": 2, "time_limit": 1e-9} | options
    return lowtide.verify(model, "100%", (), batch, **options)


def classifier():
    """A linear head and its loss, which run as one kernel, and a batch."""

    def forward(m, x, labels):
        return {"loss": functional.cross_entropy(m.head(torch.relu(m.layer(x))), labels)}

    torch.manual_seed(0)
    batch = {"x": torch.randn(40, 12), "labels": torch.randint(9, (40,))}
    return Called(forward, layer=nn.Linear(12, 16), head=nn.Linear(16, 9)), batch


def with_factor(factor: float, monkeypatch) -> None:
    """Makes gradients of the last layer's logits wrong by a factor, and the loss right."""
    right = chunked.softmax_rows

    def wrong(logits, rows, losses):
        right(logits, rows, losses)
        logits.mul_(factor)

    monkeypatch.setattr(chunked, "softmax_rows", wrong)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "resnet"])
def test_rounding_stays_within_its_limits_in_float32(name):
    report = verified(*small_model(name, layers=None if name in ("t5", "resnet") else 1))
    assert report.ok and report.same_results, str(report)
    together, alone, output = report.errors
    assert together.what == ALL_GRADIENTS and together.relative <= together.limit == 1e-5
    assert alone.what.startswith("gradient of ") and output.what.startswith(("output", "buffer"))
    assert f"{together.relative:.1e}, limit 1e-05" in str(report)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_limits_follow_the_coarsest_dtype(name):
    report = verified(*small_model(name, dtype="bfloat16", layers=None if name == "t5" else 1), steps=1)
    assert report.ok and report.errors[0].limit == limit_of([torch.bfloat16, torch.float32]), str(report)
    assert limit_of([torch.float64]) < limit_of([torch.float32]) < limit_of([torch.float16])


@pytest.mark.parametrize("factor", [1.0001, 0.0, -1.0, float("nan")])
def test_a_wrong_kernel_is_found(factor, monkeypatch):
    model, batch = classifier()
    with_factor(factor, monkeypatch)
    report = verified(model, batch)
    assert not report.ok and ALL_GRADIENTS in [difference.what for difference in report.differences], str(report)
    assert "NOT VERIFIED" in str(report) and "DIFFER, first" in str(report)


def test_a_kernel_that_is_wrong_in_16_bits_is_found(monkeypatch):
    model, batch = small_model("gpt2", dtype="bfloat16", layers=1)
    with_factor(1.1, monkeypatch)
    assert not verified(model, batch, steps=1).same_results


def test_one_wrong_gradient_among_large_ones_is_found():
    eager = {"gradient of a": torch.ones(10_000), "gradient of b": torch.full((4,), 1e-4)}
    wrong = {**eager, "gradient of b": torch.zeros(4)}
    assert [e.what for e in deviations_of(eager, wrong, 1e-5) if not e.is_within] == ["gradient of b"]
    missing = {**eager, "gradient of b": None}
    assert [e.what for e in deviations_of(eager, missing, 1e-5) if not e.is_within] == ["gradient of b", ALL_GRADIENTS]


def test_a_gradient_that_cancels_is_not_held_against_itself():
    eager = {"gradient of a": torch.ones(10_000), "gradient of key.bias": torch.full((4,), 1e-9)}
    rounded = {**eager, "gradient of key.bias": torch.full((4,), -1e-9)}
    assert all(error.is_within for error in deviations_of(eager, rounded, 1e-5))


def normalized():
    """Convolutions whose biases a BatchNorm takes off again, and GELU written out, which is replaced."""

    def forward(m, x, labels):
        for convolution, norm in zip(m.convolutions, m.norms, strict=True):
            x = norm(convolution(x))
            x = 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))
        return {"loss": functional.cross_entropy(m.head(x.mean((2, 3))), labels)}

    torch.manual_seed(0)
    convolutions = nn.ModuleList(nn.Conv2d(3 if first else 8, 8, 3, padding=1) for first in (True, False, False))
    norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
    batch = {"x": torch.randn(8, 3, 16, 16), "labels": torch.randint(9, (8,))}
    return Called(forward, convolutions=convolutions, norms=norms, head=nn.Linear(8, 9)), batch


def test_gradients_that_are_nothing_but_rounding_are_distinguished(monkeypatch):
    model, batch = normalized()
    report = verified(model, batch)
    assert report.ok and report.unstable == (), str(report)
    assert all(error.limit <= ALONE * 1e-5 or error.what.endswith(".bias") for error in report.errors)
    with_factor(1.0001, monkeypatch)
    assert not verified(model, batch).ok


def test_a_gradient_may_be_off_by_a_few_times_what_rounding_moves_it():
    eager = {"gradient of a": torch.ones(10_000), "gradient of b": torch.full((4,), 1e-2)}
    for off, moved, count in ((1e-6, 0.0, 1), (1e-6, 1e-6, 0), (1e-4, 1e-6, 1)):
        comparison = Comparison(1e-5)
        rewritten = {**eager, "gradient of b": eager["gradient of b"] + off}
        nudged = {**eager, "gradient of b": eager["gradient of b"] - moved}
        comparison.add(0, eager, eager, rewritten, nudged)
        assert [difference.what for difference in comparison.differences] == ["gradient of b"] * count
        assert comparison.unstable == {}


def test_infinities_and_whole_numbers_must_be_the_same():
    eager = {"output mask": torch.tensor([1.0, -torch.inf]), "buffer count": torch.tensor(3)}
    assert all(error.relative == 0 for error in deviations_of(eager, copy.deepcopy(eager), 1e-5))
    for wrong in ({"output mask": torch.tensor([1.0, 2.0])}, {"buffer count": torch.tensor(4)}):
        assert not all(error.is_within for error in deviations_of(eager, {**eager, **wrong}, 1e-5))


def test_what_eager_does_not_repeat_is_listed_separately():
    eager, repeated = {"output loss": torch.tensor(1.0)}, {"output loss": torch.tensor(2.0)}
    for limit in (None, 1e-5):
        comparison = Comparison(limit)
        comparison.add(0, eager, repeated, {"output loss": torch.tensor(3.0)})
        assert comparison.differences == () and list(comparison.unstable) == ["output loss"]


def test_with_bitwise_fidelity_a_last_bit_is_a_difference():
    model, batch = small_model("gpt2", layers=1)
    report = verified(model, batch, fidelity="bitwise")
    assert report.ok and report.same_bits and report.errors == (), str(report)  # logits are not compared: not returned
    comparison = Comparison(None)
    results = {"output loss": torch.tensor(1.0)}
    comparison.add(0, results, results, {"output loss": torch.tensor(1.0).nextafter(torch.tensor(2.0))})
    assert [difference.what for difference in comparison.differences] == ["output loss"]


def test_a_dtype_whose_rounding_is_unknown_is_refused():
    with pytest.raises(ValueError, match=r"no limit is known for rounding in torch\.float8_e4m3fn"):
        limit_of([torch.float32, torch.float8_e4m3fn])


def test_sweep_and_verify_take_a_time_limit():
    model, batch = small_model("gpt2", layers=1)
    plans = lowtide.sweep(model, (), batch, costs="flops", time_limit=1e-9)
    assert any("was stopped at the time limit of 1e-09 s" in note for note in plans[0].notes)
    assert lowtide.verify(model, "95%", (), batch, costs="flops", time_limit=1e-9, steps=1).ok
    with pytest.raises(ValueError, match="time_limit=0 is not a time"):
        lowtide.sweep(model, (), batch, costs="flops", time_limit=0)


def test_a_gradient_made_in_forward_is_no_output_to_leave_out():
    model, batch = small_model("gpt2", layers=1)
    options = {"fidelity": "rounding", "outputs": ["loss"], "costs": "flops", "time_limit": 1e-9}
    with pytest.raises(lowtide.InfeasibleBudget) as refused:
        lowtide.plan(model, "1KiB", (), batch, **options)
    assert "returned outputs" not in str(refused.value)


@pytest.mark.parametrize("fidelity", ["bitwise", "rounding"])
def test_backward_starts_from_what_is_returned_where_that_is_chosen(fidelity):
    torch.manual_seed(0)
    model = Called(lambda m, x: (m.part(x).square().mean(), m.part(x).exp()), part=nn.Linear(8, 8))
    report = lowtide.verify(model, "100%", (torch.randn(4, 8),), fidelity=fidelity, outputs=["0"], costs="flops")
    assert report.ok, str(report)
