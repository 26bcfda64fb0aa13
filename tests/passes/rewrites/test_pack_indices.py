"""Max pooling keeps the place of each window's maximum in a few bits, and gives the same gradients."""

import copy

import lowtide
import pytest
import torch
from lowtide.passes.rewrites.pack_indices import PackIndices
from pass_checks import captured_graph, compare_with_golden, gradients_of, graph_after
from small_networks import Called
from torch import nn
from torch.nn import functional


def test_before_and_after(golden):
    model = Called(lambda m, x: functional.max_pool2d(m.layer(x), 2), layer=nn.Conv2d(3, 5, 3, bias=False))
    compare_with_golden(golden, PackIndices(), captured_graph(model, torch.randn(2, 3, 10, 10)))


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


def test_indices_that_forward_reads_are_not_packed():
    def function(m, x):
        pooled, indices = functional.max_pool2d(m.layer(x), 2, return_indices=True)
        return functional.max_unpool2d(pooled, indices, 2)

    targets, _ = graph_after(PackIndices(), function, torch.randn(2, 3, 8, 8), layer=nn.Conv2d(3, 5, 3, padding=1))
    assert not any("codes" in target for target in targets)
