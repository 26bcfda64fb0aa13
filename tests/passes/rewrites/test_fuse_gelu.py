"""GELU written out in products and powers runs as one operation; what only looks like it does not."""

import pytest
import torch
from lowtide.passes.rewrites.fuse_gelu import WrittenGelu
from pass_checks import assert_near, captured_graph, compare_with_golden
from small_networks import Called
from torch import nn


def written_gelu(x):
    """GELU written as in transformers."""
    return 0.5 * x * (1.0 + torch.tanh((2.0 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0))))


def test_before_and_after(golden):
    parts = {"layer": nn.Linear(8, 16, bias=False), "after": nn.Linear(16, 4, bias=False)}
    model = Called(lambda m, x: m.after(written_gelu(m.layer(x))), **parts)
    compare_with_golden(golden, WrittenGelu(), captured_graph(model, torch.randn(4, 8)))


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
