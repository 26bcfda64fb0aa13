"""The backward of an average pooling reads a shape instead of a tensor, and gives the same gradients."""

import copy

import lowtide
import pytest
import torch
from lowtide.passes.rewrites.keep_shapes import KeepShapes
from pass_checks import assert_unchanged, captured_graph, compare_with_golden, gradients_of, graph_after
from small_networks import Called
from torch import nn
from torch.nn import functional


def pooled(x):
    """The graph of an average pooling over a convolution."""
    model = Called(lambda m, x: functional.avg_pool2d(m.layer(x), 2), layer=nn.Conv2d(3, 5, 3, bias=False))
    return captured_graph(model, x)


def test_before_and_after(golden):
    compare_with_golden(golden, KeepShapes(), pooled(torch.randn(2, 3, 10, 10)))


def test_an_operand_of_another_layout_is_read_still():
    assert_unchanged(KeepShapes(), pooled(torch.randn(2, 3, 10, 10).contiguous(memory_format=torch.channels_last)))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d((5, 3))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_average_pooling_keeps_nothing_and_gives_the_same_gradients(pool, layout):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), pool, nn.Conv2d(5, 2, 2)).to(memory_format=layout)
    x = torch.randn(2, 3, 13, 15).contiguous(memory_format=layout)
    small = lowtide.rewrite(copy.deepcopy(model), "100%", (x,), costs="flops")
    (loss, expected), (actual_loss, actual) = gradients_of(model, x), gradients_of(small, x)
    assert torch.equal(loss, actual_loss) and all(map(torch.equal, expected, actual))
    if layout is torch.contiguous_format:
        _, graph = graph_after(KeepShapes(), lambda m, x: m.rest(x), x, rest=model)
        (backward,) = (n for n in graph.graph.nodes if "pool2d_backward" in n.name)
        assert "expand" in backward.args[1].name
