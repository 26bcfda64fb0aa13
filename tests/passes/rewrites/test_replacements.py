"""Passes that put one operation for several: where they apply, where they must not, and what is computed then."""

import copy
import inspect
import re

import lowtide
import pytest
import torch
from lowtide.passes.rewrites.chunk_cross_entropy import ChunkCrossEntropy
from lowtide.passes.rewrites.forget_shapes import ForgetShapes
from lowtide.passes.rewrites.free_factories import FreeFactories
from lowtide.passes.rewrites.fuse_gelu import WrittenGelu
from lowtide.passes.rewrites.pack_indices import PackIndices
from lowtide.passes.rewrites.pack_masks import PackMasks
from lowtide.passes.rewrites.save_outputs import InvertOutputs, SaveOutputs
from lowtide.rewriter.capture.capture import capture
from small_models import small_model
from small_networks import Called
from torch import nn
from torch.nn import functional


def graph_after(apply, function, *args, outputs=None, **parts):
    """The targets of all calls after a pass, and the graph, for a function of a module's parts and arguments."""
    captured = capture(Called(function, **parts), args, {}, outputs=outputs)
    graph = apply(FreeFactories()(captured.graph))
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"], graph


def gradients_of(model, *args, **kwargs):
    """Loss and gradients of one step, drawing from the same numbers each time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    returned = model(*args, **kwargs)
    loss = returned["loss"] if isinstance(returned, dict) else getattr(returned, "loss", returned)
    loss.sum().backward()
    return loss.detach(), [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def assert_near(model, *args, most=1e-6, **options):
    """A rewritten copy gives the same loss and gradients up to rounding; returns its code."""
    small = lowtide.rewrite(copy.deepcopy(model), "100%", args, {}, fidelity="rounding", costs="flops", **options)
    (loss, expected), (actual_loss, actual) = gradients_of(model, *args), gradients_of(small, *args)
    assert torch.allclose(loss, actual_loss, rtol=1e-5)
    for left, right in zip(expected, actual, strict=True):
        assert (left is None) == (right is None)
        assert left is None or (left - right).norm() <= most * left.norm() + 1e-12
    return small.code


def test_each_docstring_shows_what_the_pass_does():
    for graph_pass in (
        PackMasks,
        PackIndices,
        ForgetShapes,
        SaveOutputs,
        WrittenGelu,
        InvertOutputs,
        ChunkCrossEntropy,
    ):
        text = inspect.getdoc(graph_pass) or ""
        assert re.search(r"^before: .*aten\.", text, re.MULTILINE), graph_pass
        assert re.search(r"^ *after: .*(lowtide|aten)\.", text, re.MULTILINE), graph_pass


def test_dropout_draws_into_bits_and_multiplies_by_them_in_both_directions():
    targets, graph = graph_after(
        PackMasks(), lambda m, x: functional.dropout(m.layer(x), 0.1), torch.randn(4, 16), layer=nn.Linear(16, 16)
    )
    assert targets.count("lowtide.draw_bits.default") == 1 and targets.count("lowtide.multiply_bits.default") == 2
    assert not any("bernoulli" in target or "div" in target for target in targets)
    (bits,) = (node for node in graph.graph.nodes if "draw_bits" in str(node.target))
    assert bits.meta["val"].shape == (8,) and bits.meta["val"].dtype == torch.uint8


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: functional.dropout2d(m.layer(x).view(4, 4, 2, 2), 0.5),  # a mask that is expanded
        lambda m, x: m.layer(x) * torch.bernoulli(torch.full((4, 16), 0.5)),  # no dropout
    ],
)
def test_masks_of_another_shape_or_make_stay_as_they_are(function):
    targets, _ = graph_after(PackMasks(), function, torch.randn(4, 16), layer=nn.Linear(16, 16))
    assert not any("draw_bits" in target for target in targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_of_fused_dropout_is_packed_as_soon_as_it_is_drawn_and_gradients_stay_exact(dtype):
    def function(m, x):
        return m.after(torch.native_dropout(m.layer(x), 0.1, True)[0])

    parts = {"layer": nn.Linear(16, 24).to(dtype), "after": nn.Linear(24, 3).to(dtype)}
    x = torch.randn(7, 16, dtype=dtype)
    targets, graph = graph_after(PackMasks(), function, x, **parts)
    assert targets.count("lowtide.pack_bits.default") == targets.count("lowtide.multiply_bits.default") == 1
    (bits,) = (node for node in graph.graph.nodes if "pack_bits" in str(node.target))
    assert bits.meta["val"].shape == (21,) and "native_dropout_backward" not in str(targets)
    model = Called(function, **parts)
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (x,), costs="flops")
    (loss, expected), (actual_loss, actual) = gradients_of(model, x), gradients_of(small, x)
    assert torch.equal(loss, actual_loss) and all(map(torch.equal, expected, actual))
    assert "pack_bits" in small.code


def test_the_mask_of_fused_dropout_that_is_read_otherwise_stays_as_it_is():
    def read(m, x):
        y, mask = torch.native_dropout(m.layer(x), 0.1, True)
        return y * mask

    def turned(m, x):  # the gradient lies otherwise than the mask
        return torch.native_dropout(m.layer(x).t(), 0.1, True)[0] * torch.ones(16, 4)

    for function in (read, turned):
        targets, _ = graph_after(PackMasks(), function, torch.randn(4, 16), layer=nn.Linear(16, 16))
        assert "aten.native_dropout_backward.default" in targets and "lowtide.pack_bits.default" not in targets


def test_dropout_on_a_permuted_tensor_is_exact():
    model = Called(
        lambda m, x: functional.dropout(m.layer(x).permute(0, 2, 1), 0.3).transpose(0, 1).square(),
        layer=nn.Linear(8, 8),
    )
    x = torch.randn(3, 5, 8)
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (x,), costs="flops")
    (loss, expected), (actual_loss, actual) = gradients_of(model, x), gradients_of(small, x)
    assert torch.equal(loss, actual_loss) and all(map(torch.equal, expected, actual))


@pytest.mark.parametrize("window", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_max_pooling_keeps_bits_of_its_windows_and_gives_the_same_gradients(window, layout):
    model = Called(
        lambda m, x: m.after(functional.max_pool2d(m.layer(x), **window)),
        layer=nn.Conv2d(3, 5, 3),
        after=nn.Conv2d(5, 2, 3),
    ).to(memory_format=layout)
    x = torch.randn(2, 3, 13, 15).contiguous(memory_format=layout)
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (x,), costs="flops")
    (loss, expected), (actual_loss, actual) = gradients_of(model, x), gradients_of(small, x)
    assert torch.equal(loss, actual_loss) and all(map(torch.equal, expected, actual))
    assert "max_pool2d_codes" in small.code and "with_indices" not in small.code


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d((5, 3))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_average_pooling_keeps_nothing_and_gives_the_same_gradients(pool, layout):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), pool, nn.Conv2d(5, 2, 2)).to(memory_format=layout)
    x = torch.randn(2, 3, 13, 15).contiguous(memory_format=layout)
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (x,), costs="flops")
    (loss, expected), (actual_loss, actual) = gradients_of(model, x), gradients_of(small, x)
    assert torch.equal(loss, actual_loss) and all(map(torch.equal, expected, actual))
    if layout is torch.contiguous_format:
        _, graph = graph_after(ForgetShapes(), lambda m, x: m.rest(x), x, rest=model)
        (backward,) = (n for n in graph.graph.nodes if "pool2d_backward" in n.name)
        assert "expand" in backward.args[1].name


def test_indices_that_forward_reads_are_not_packed():
    def function(m, x):
        pooled, indices = functional.max_pool2d(m.layer(x), 2, return_indices=True)
        return functional.max_unpool2d(pooled, indices, 2)

    targets, _ = graph_after(PackIndices(), function, torch.randn(2, 3, 8, 8), layer=nn.Conv2d(3, 5, 3, padding=1))
    assert not any("codes" in target for target in targets)


@pytest.mark.parametrize(
    ("activation", "fidelity"),
    [
        (nn.ReLU6(), "bitwise"),
        (nn.Hardtanh(-0.3, 0.5), "bitwise"),
        (nn.LeakyReLU(0.1), "bitwise"),
        (nn.ELU(), "rounding"),
        (nn.SELU(), "rounding"),
        (nn.CELU(0.7), "rounding"),
    ],
)
def test_backward_reads_the_output_that_the_next_layer_keeps(activation, fidelity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), activation, nn.Linear(16, 4))
    x = 3 * torch.randn(40, 8)
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (x,), fidelity=fidelity, costs="flops")
    (loss, expected), (actual_loss, actual) = gradients_of(model, x), gradients_of(small, x)
    assert torch.equal(loss, actual_loss)
    for left, right in zip(expected, actual, strict=True):
        assert torch.equal(left, right) if fidelity == "bitwise" else (left - right).norm() <= 1e-6 * left.norm()
    _, graph = graph_after(
        lambda g: InvertOutputs()(SaveOutputs()(g)),
        lambda m, x: m.after(activation(m.layer(x))),
        x,
        layer=nn.Linear(8, 16),
        after=nn.Linear(16, 4),
    )
    (backward,) = (n for n in graph.graph.nodes if n.op == "call_function" and re.search("u_backward|h_backw", n.name))
    forward = backward.args[-1 if "elu_backward" in backward.name and "leaky" not in backward.name else 1]
    assert "lu" in str(forward.target) or "hardtanh" in str(forward.target)  # an activation, and no product


def test_an_input_that_is_kept_for_something_else_is_read_still():
    def function(m, x):
        y = m.layer(x)
        return functional.relu6(y).square() * y

    _, graph = graph_after(SaveOutputs(), function, torch.randn(4, 8), layer=nn.Linear(8, 8))
    (backward,) = (n for n in graph.graph.nodes if "hardtanh_backward" in n.name)
    assert "hardtanh" not in str(backward.args[1].target)


def written_gelu(x):
    """GELU written as in transformers."""
    return 0.5 * x * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0))))


def test_a_written_out_gelu_becomes_one_operation_in_each_direction():
    model = Called(lambda m, x: m.after(written_gelu(m.layer(x))), layer=nn.Linear(16, 64), after=nn.Linear(64, 16))
    code = assert_near(model, torch.randn(32, 16))
    assert (
        "aten.gelu.default" in code
        and "aten.gelu_backward.default" in code
        and "tanh" not in code.replace("'tanh'", "")
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * torch.pow(x, 3.0)))),  # another factor
        lambda x: 0.4 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: torch.tanh(x) + written_gelu(x) * torch.tanh(x),  # the operand is read elsewhere too
    ],
)
def test_what_only_looks_like_gelu_is_computed_as_it_is_written(function):
    model = Called(lambda m, x: m.after(function(m.layer(x))), layer=nn.Linear(16, 64), after=nn.Linear(64, 16))
    assert_near(model, torch.randn(32, 16))


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
    model, batch = small_model(name, layers=None if name == "t5" else 1)
    options = {"fidelity": "rounding", "outputs": ["loss"], "costs": "flops", "solver": "keep_all"}
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (), batch, **options)
    (loss, expected), (actual_loss, actual) = gradients_of(model, **batch), gradients_of(small, **batch)
    assert torch.allclose(loss, actual_loss, rtol=1e-5)
    for left, right in zip(expected, actual, strict=True):
        assert (left is None) == (right is None)
        assert left is None or (left - right).norm() <= 2e-5 * left.norm() + 1e-9
    assert "linear_cross_entropy" in small.code
