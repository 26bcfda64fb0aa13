"""Cross-entropies over a linear layer, as people write them: none makes its logits, and gradients are eager's."""

import copy

import lowtide
import pytest
import torch
from lowtide.passes.rewrites.chunk_cross_entropy import ChunkCrossEntropy
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from pass_checks import assert_near, captured_graph, compare_with_golden, gradients_of
from small_models import SMALL, small_model
from small_networks import Called
from torch import nn
from torch.nn import functional

ROWS, CLASSES = 512, 4096
LOGITS_BYTES = 4 * ROWS * CLASSES
CLOSE = 2e-6  # from eager, which lies up to 1.2e-6 from float64 itself here, as the rewritten does


def cross_entropy(m, x, t, **options):
    """Return the cross-entropy of the layer's logits."""
    return functional.cross_entropy(m.head(x), t, **options)


def unreduced(m, x, t, **options):
    """A loss for each row, in sequences of 64."""
    return cross_entropy(m, x, t, reduction="none", **options).view(-1, 64)


def importance():
    return torch.linspace(0.5, 2, CLASSES)


FORMS = {
    "mean": cross_entropy,
    "sum, divided outside": lambda m, x, t: cross_entropy(m, x, t, reduction="sum") / (t != -100).sum(),
    "sum, divided by a number": lambda m, x, t: cross_entropy(m, x, t, reduction="sum") / 7,
    "class weights": lambda m, x, t: cross_entropy(m, x, t, weight=importance()),
    "another index ignored": lambda m, x, t: cross_entropy(m, x, t.clamp(min=3), ignore_index=3),
    "log-softmax and likelihood": lambda m, x, t: functional.nll_loss(functional.log_softmax(m.head(x), -1), t),
    "smoothed": lambda m, x, t: cross_entropy(m, x, t, label_smoothing=0.1),
    "smoothed sum": lambda m, x, t: cross_entropy(m, x, t, label_smoothing=0.2, reduction="sum") / ROWS,
    "smoothed, with class weights": lambda m, x, t: cross_entropy(m, x, t, label_smoothing=0.1, weight=importance()),
    "smoothed sum, with class weights": lambda m, x, t: (
        2
        * cross_entropy(m, x, t.clamp(min=3), label_smoothing=0.3, weight=importance(), reduction="sum", ignore_index=3)
    ),
    "unreduced, then the mean": lambda m, x, t: unreduced(m, x, t).mean(),
    "unreduced, then masked": lambda m, x, t: (unreduced(m, x, t) * (t.view(-1, 64) > 9)).sum() / (t > 9).sum(),
    "unreduced, then weighed": lambda m, x, t: (torch.rand(ROWS // 64, 64) * unreduced(m, x, t)).mean(),
    "unreduced, with class weights": lambda m, x, t: unreduced(m, x, t, weight=importance()).sum(),
}

OTHERS = {
    "unreduced, then squared": lambda m, x, t: unreduced(m, x, t).square().mean(),
    "weighed by itself": lambda m, x, t: (unreduced(m, x, t) * (-unreduced(m, x, t)).exp()).mean(),
    "weighed by what is learned": lambda m, x, t: (unreduced(m, x, t) * m.weight).sum(),
    "a sum for each sequence": lambda m, x, t: unreduced(m, x, t).sum(1).square().mean(),
    "logits read elsewhere": lambda m, x, t: cross_entropy(m, x, t) + m.head(x).square().mean() * 0,
    "another bias added": lambda m, x, t: functional.cross_entropy(m.head(x) + importance(), t),
    "numbers of the row added": lambda m, x, t: functional.cross_entropy(m.head(x) + m.head(x[:1]), t),
    "smoothed otherwise": lambda m, x, t: smoothed_otherwise(m.head(x), t),
    "smoothed and unreduced": lambda m, x, t: unreduced(m, x, t, label_smoothing=0.1).mean(),
}


def smoothed_otherwise(logits, target):
    """Smoothing with a share for the other classes that is not what the target gives up."""
    logs = functional.log_softmax(logits, -1)
    mask = target == -100
    spread = (-logs.sum(1)).masked_fill(mask, 0.0).sum() / (~mask).sum()
    return functional.nll_loss(logs, target) * 0.9 + spread * (0.3 / CLASSES)


def problem(function, bias=True):
    torch.manual_seed(0)
    parts = {"head": nn.Linear(8, CLASSES, bias=bias), "weight": nn.Parameter(torch.rand(ROWS // 64, 64))}
    target = torch.where(torch.rand(ROWS) < 0.2, -100, torch.randint(CLASSES, (ROWS,)))
    return Called(function, **parts), torch.randn(ROWS, 8).requires_grad_(), target


def step(model, *args, **kwargs):
    """Loss, and gradients of parameters and inputs."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    returned = model(*args, **kwargs)
    loss = getattr(returned, "loss", returned)
    inputs = [x for x in args if isinstance(x, torch.Tensor) and x.requires_grad]
    for x in inputs:
        x.grad = None
    loss.backward()
    return loss.detach(), [x.grad for x in (*model.parameters(), *inputs)]


def rewritten(model, *args, **options):
    options = {"fidelity": "rounding", "costs": "flops", "time_limit": 1e-9} | options
    return lowtide.rewrite(copy.deepcopy(model), "100%", args, **options)


def assert_same(expected, actual, most=CLOSE):
    assert torch.allclose(expected[0], actual[0], rtol=1e-5), (expected[0], actual[0])
    for left, right in zip(expected[1], actual[1], strict=True):
        assert (left is None) == (right is None)
        assert left is None or (left - right).norm() <= most * left.norm()


def test_before_and_after(golden):
    model = Called(lambda m, x, t: functional.cross_entropy(m.head(x), t), head=nn.Linear(8, 16, bias=False))
    compare_with_golden(golden, ChunkCrossEntropy(), captured_graph(model, torch.randn(4, 8), torch.arange(4)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_logits_do_not_exist_and_gradients_are_eagers(name, bias):
    model, x, target = problem(FORMS[name], bias)
    small = rewritten(model, x, target)
    assert small.code.count("lowtide.linear_cross_entropy.default") == 1 and "softmax" not in small.code
    assert_same(step(model, x, target), step(small, x, target))
    assert lowtide.measure_peak(lambda: step(small, x, target)) < 0.8 * LOGITS_BYTES
    assert small.plan.baseline_peak_bytes < 0.8 * LOGITS_BYTES


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_another_loss_is_left_alone(name):
    model, x, target = problem(OTHERS[name])
    small = rewritten(model, x, target)
    assert "linear_cross_entropy" not in small.code and "softmax" in small.code
    assert_same(step(model, x, target), step(small, x, target))


def test_a_mean_over_ignored_rows_alone_is_what_torch_says():
    for name in ("mean", "smoothed", "unreduced, then the mean"):
        model, x, target = problem(FORMS[name])
        small, target = rewritten(model, x, target), torch.full_like(target, -100)
        (loss, expected), (actual_loss, actual) = step(model, x, target), step(small, x, target)
        assert torch.equal(loss.isnan(), actual_loss.isnan())
        for left, right in zip(expected, actual, strict=True):
            assert left is right is None or torch.equal(left.nan_to_num(), right.nan_to_num())


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("shape", [(CLASSES,), (1, CLASSES)])
def test_a_bias_may_be_added_to_the_product(learned, shape):
    offset = torch.randn(shape)
    model, x, target = problem(lambda m, x, t: functional.cross_entropy(m.head(x) + m.offset, t), bias=False)
    if learned:
        model.offset = nn.Parameter(offset)
    else:
        model.register_buffer("offset", offset)
    small = rewritten(model, x, target)
    assert "lowtide.linear_cross_entropy.default" in small.code and "softmax" not in small.code
    assert_same(step(model, x, target), step(small, x, target))


def test_bart_makes_no_logits():
    sizes = {"vocab_size": 200, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "decoder_ffn_dim": 32}
    model = build_model("bart", overrides={**sizes, "encoder_ffn_dim": 32, "max_position_embeddings": 40})
    batch = sample_batch(model, 2, 24)
    options = {"fidelity": "rounding", "outputs": ["loss"], "costs": "flops", "time_limit": 1e-9, "steps": 1}
    report = lowtide.verify(model, "100%", (), batch, **options)
    assert report.ok and any(note.startswith("chunked_cross_entropy") for note in report.notes), str(report)


@pytest.mark.parametrize("count", [None, 7, torch.tensor(7)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_language_model_of_transformers_makes_no_logits(count, dtype):
    model = build_model("llama", overrides={**SMALL["llama"], "tie_word_embeddings": "true"}, dtype=dtype)
    batch = sample_batch(model, 2, 24)
    batch["labels"][:, :5] = -100
    batch |= {"num_items_in_batch": count} if count is not None else {}
    options = {"fidelity": "rounding", "outputs": ["loss"], "costs": "flops", "time_limit": 1e-9}
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (), batch, **options)
    assert "lowtide.linear_cross_entropy.default" in small.code and "_log_softmax" not in small.code
    assert_same(step(model, **batch), step(small, **batch), most=1e-5 if dtype == "float32" else 3e-2)


def language_loss(m, ids, labels):
    """A linear head over tied embeddings, and the mean over tokens that are not ignored."""
    logits = functional.linear(m.layer(m.embed(ids)), m.embed.weight)
    return {"loss": functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1)), "logits": logits}


def language_model():
    torch.manual_seed(0)
    return Called(language_loss, embed=nn.Embedding(50, 16), layer=nn.Linear(16, 16))


def test_a_linear_head_and_its_loss_run_in_chunks_when_logits_are_not_returned():
    ids = torch.randint(50, (4, 9))
    labels = torch.where(torch.rand(4, 9) < 0.2, -100, ids)
    code = assert_near(language_model(), ids, labels, outputs=["loss"])
    assert "lowtide.linear_cross_entropy.default" in code and "log_softmax" not in code
    assert "log_softmax" in assert_near(language_model(), ids, labels)  # logits are returned


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, t: functional.cross_entropy(m.layer(x), t, reduction="sum") / 7,
        lambda m, x, t: functional.cross_entropy(m.layer(x), t, weight=torch.linspace(0.5, 2, 11)),
        lambda m, x, t: functional.cross_entropy(m.layer(x), t, ignore_index=3),
        lambda m, x, t: 2 * functional.cross_entropy(m.layer(x).double(), t),
        lambda m, x, t: functional.cross_entropy(m.layer(x), t, label_smoothing=0.1),
        lambda m, x, t: functional.cross_entropy(m.layer(x), t, reduction="none").square().mean(),
        lambda m, x, t: functional.cross_entropy(m.layer(x), t) + m.layer(x).square().mean(),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_losses_of_every_kind_keep_their_gradients(function, bias):
    torch.manual_seed(1)
    model = Called(function, layer=nn.Linear(8, 11, bias=bias))
    assert_near(model, torch.randn(20, 8), torch.randint(11, (20,)), most=2e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_known_models_give_the_same_loss_and_gradients_up_to_rounding(name):
    model, batch = small_model(name)
    small = lowtide.rewrite(
        copy.deepcopy(model), "100%", (), batch, fidelity="rounding", outputs=["loss"], costs="flops"
    )
    (loss, expected), (actual_loss, actual) = gradients_of(model, **batch), gradients_of(small, **batch)
    assert torch.allclose(loss, actual_loss, rtol=1e-5)
    for left, right in zip(expected, actual, strict=True):
        assert (left is None) == (right is None)
        assert left is None or (left - right).norm() <= 2e-5 * left.norm() + 1e-9
    assert "linear_cross_entropy" in small.code
