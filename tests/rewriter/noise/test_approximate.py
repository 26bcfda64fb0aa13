"""Gradients that are approximate on purpose: budgets are kept, noise is as predicted, all else is exact."""

import copy

import lowtide
import pytest
import torch
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model

# Any plan with codes will do, and this solver is quick.
OPTIONS = {"fidelity": "approximate", "outputs": ["loss"], "costs": "flops", "solver": "rotor"}


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = build_model("gpt2", overrides={"n_layer": 1, "n_embd": 64, "n_head": 2, "vocab_size": 300}).train()
    model.config.use_cache = False
    return model, sample_batch(model, 8, 64)


@pytest.fixture(scope="module")
def small(case):
    model, batch = case
    return lowtide.rewrite(copy.deepcopy(model), "60%", (), batch, error_budget=0.05, **OPTIONS)


def gradient(model, batch, seed):
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(seed)
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])


def test_both_budgets_are_kept_and_verified(case):
    model, batch = case
    report = lowtide.verify(model, "60%", (), batch, error_budget=0.05, **OPTIONS)
    assert report.ok, str(report)
    assert 0 < report.plan.encoding_error <= 0.05
    assert report.predicted_error > 0
    assert report.measured_peak_bytes == report.plan.peak_bytes <= report.plan.budget_bytes
    assert "variance added, predicted" in str(report)


def test_noise_is_as_predicted_and_without_bias_where_rounding_is_at_random(case):
    torch.manual_seed(0)
    sizes = {"n_layer": 1, "n_embd": 64, "n_head": 2, "vocab_size": 300, "activation_function": "relu"}
    model, batch = build_model("gpt2", overrides=sizes).train(), case[1]  # no levels of derivatives, which are biased
    model.config.use_cache = False
    small = lowtide.rewrite(copy.deepcopy(model), "70%", (), batch, error_budget=0.05, **OPTIONS)
    assert small.plan.encoding_error > 0
    draws, noise = 24, []
    for seed in range(draws):
        exact_loss, exact = gradient(model, batch, seed)
        loss, noisy = gradient(small, batch, seed)
        torch.testing.assert_close(loss, exact_loss, rtol=1e-6, atol=0)
        noise.append(noisy - exact)
    noise = torch.stack(noise)
    measured = float(noise.square().sum(1).mean())
    predicted = small.lowtide.planned.noise_energy
    assert measured == pytest.approx(predicted, rel=0.25)
    # of independent noise the mean over n draws keeps an n-th of the energy
    assert float(noise.mean(0).square().sum()) < 1.5 * measured / draws


def test_the_same_seed_draws_the_same_noise_and_the_next_step_another(case, small):
    _, batch = case
    first, again = gradient(small, batch, 5)[1], gradient(small, batch, 5)[1]
    assert torch.equal(first, again)
    for parameter in small.parameters():
        parameter.grad = None
    small(**batch).loss.backward()  # goes on where the last step left the generator
    assert not torch.equal(first, torch.cat([p.grad.flatten().double() for p in small.parameters()]))


def test_steps_without_dropout_draw_other_noise_each_time():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 172}
    model = build_model("llama", overrides={**sizes, "vocab_size": 300}).train()
    model.config.use_cache = False
    batch = sample_batch(model, 8, 64)
    small = lowtide.rewrite(model, "60%", (), batch, error_budget=0.1, **OPTIONS)
    assert small.plan.encoded
    torch.manual_seed(0)
    gradients = []
    for _ in range(2):
        small.zero_grad()
        small(**batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in small.parameters()])
    assert not all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))


def test_with_nothing_to_spend_nothing_is_approximate(case):
    model, batch = case
    small = lowtide.rewrite(copy.deepcopy(model), "70%", (), batch, error_budget=0.0, **OPTIONS)
    assert small.plan.encoding_error == 0
    exact, actual = gradient(model, batch, 0)[1], gradient(small, batch, 0)[1]
    assert float((actual - exact).norm() / exact.norm()) < 1e-6


def test_the_generated_code_names_codecs_and_seeds(small):
    assert "lowtide.encode_groups.default(" in small.code
    assert "seed=seed + " in small.code


def test_a_module_goes_on_after_a_copy(case, small):
    _, batch = case
    duplicate = copy.deepcopy(small)
    assert torch.equal(gradient(duplicate, batch, 2)[1], gradient(small, batch, 2)[1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"error_budget": -0.1}, ValueError, "error_budget=-0.1 is not a share of a variance: pass 0 or more"),
        ({"error_budget": float("nan")}, ValueError, "error_budget=nan is not a share"),
        ({"device": "h200-141gb", "costs": "roofline"}, lowtide.PlanError, "measures on real data"),
    ],
)
def test_what_cannot_be_is_refused(case, options, error, message):
    model, batch = case
    with pytest.raises(error, match=message):
        lowtide.plan(model, "60%", (), batch, **{**OPTIONS, **options})


def test_a_model_without_data_is_refused():
    model = build_model("gpt2", overrides={"n_layer": 1, "n_embd": 32, "n_head": 2, "vocab_size": 100}, meta=True)
    model.config.use_cache = False
    batch = {name: tensor.to("meta") for name, tensor in sample_batch(model.train(), 2, 16).items()}
    with pytest.raises(lowtide.PlanError, match="pass a model and inputs with data"):
        lowtide.plan(model, "60%", (), batch, **OPTIONS)
