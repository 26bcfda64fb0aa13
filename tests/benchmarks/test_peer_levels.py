"""Tests fixed levels in a model's GELUs: backward multiplies with them, and lowtide's codes agree."""

import pytest
import torch
from lowtide.kernels.few_bit.derivative_codecs import fitted_codes
from lowtide.kernels.few_bit.saved_derivatives import SavedDerivative
from lowtide.rewriter.models.build import build_model
from torch import nn

from benchmarks.approximate.force_encoded import all_encoded, named
from benchmarks.approximate.peer_levels import REGELU2, LevelledGelu, Levels, levels_under, peers, with_levels
from benchmarks.eager_baseline import gradient_error

SIZES = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 16, "vocab_size": 64}


@pytest.fixture(scope="module")
def model():
    model = build_model("gpt2", overrides={**SIZES, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    model.config.use_cache = False
    for block in model.transformer.h:
        block.mlp.c_fc.weight.data *= 5  # inputs of GELU in all its stretches
    return model


@pytest.fixture(scope="module")
def batch():
    ids = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("form", ["none", "tanh"])
def test_forward_is_exact_and_backward_multiplies_with_levels(form):
    x = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0], requires_grad=True)
    gelu = nn.GELU(approximate=form)
    y = LevelledGelu(gelu, REGELU2)(x)
    assert torch.equal(y, gelu(x))
    y.backward(torch.full((5,), 2.0))
    low, high = -0.04922261145617846, 1.04874059508555
    torch.testing.assert_close(x.grad, 2 * torch.tensor([0.0, low, high, high, 1.0]))


def test_more_levels_err_less(model, batch):
    errors = [
        gradient_error(model, with_levels(model, levels_under("normal:0,1", bits)), batch) for bits in (1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.03 and errors[0] > 5 * errors[-1] > 0


def test_published_levels_are_those_of_the_best_intervals():
    published = peers()
    two = published["levels for U(-10, 10), 2 bits"]
    assert two.borders == pytest.approx((-0.4690264, 0, 0.4690264), abs=2e-4)
    assert two.levels == pytest.approx((-0.0157241, 0.3195254, 0.6804746, 1.0157241), abs=2e-4)
    assert all(len(levels.levels) == len(levels.borders) + 1 for levels in published.values())


def test_eager_with_fitted_levels_is_as_far_off_as_the_rewritten_model(model, batch):
    """Compare levels put into eager with the same ones in a plan: gradients are equally far from exact ones."""
    seen = {}
    hooks = [
        model.transformer.h[0].mlp.act.register_forward_hook(lambda _, inputs, y: seen.update(x=inputs[0], y=y)),
        model.transformer.h[0].mlp.act.register_full_backward_hook(lambda *arguments: seen.update(g=arguments[2][0])),
    ]
    model(**batch).loss.backward()
    for hook in hooks:
        hook.remove()
    derivative = SavedDerivative("gelu_tanh")
    codes, decoded = fitted_codes(derivative, 2, seen["x"], seen["g"])
    reached = derivative.activation.slopes(torch.tensor(decoded["representatives"], dtype=torch.float64).numpy())
    levels = Levels(codes["borders"], tuple(reached[list(codes["level_of_interval"])].tolist()))
    small, _ = all_encoded(model, batch, named("2-bit gelu_tanh'"))
    exact, eager = (gradient_error(model, variant, batch) for variant in (small, with_levels(model, levels)))
    assert exact == pytest.approx(eager, rel=1e-3) and exact > 0.01
    assert gradient_error(small, with_levels(model, levels), batch) < 1e-3 * exact


def test_a_model_without_gelu_is_refused():
    with pytest.raises(ValueError, match="Sequential has no GELU among its modules"):
        with_levels(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), REGELU2)
