"""Masks of dropout are kept in bits where all that read them are products, and gradients stay exact."""

import copy

import lowtide
import pytest
import torch
from lowtide.passes.rewrites.pack_masks import PackMasks
from pass_checks import captured_graph, compare_with_golden, gradients_of, graph_after
from small_networks import Called
from torch import nn
from torch.nn import functional


def test_before_and_after(golden):
    def function(m, x):
        return torch.native_dropout(functional.dropout(m.layer(x), 0.1), 0.1, True)[0]

    model = Called(function, layer=nn.Linear(16, 16, bias=False))
    compare_with_golden(golden, PackMasks(), captured_graph(model, torch.randn(4, 16)))


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
