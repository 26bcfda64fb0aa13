"""Backward reads an activation's output where that saves its input, and gives the same gradients."""

import copy
import re

import lowtide
import pytest
import torch
from lowtide.passes.rewrites.save_outputs import InvertOutputs, SaveOutputs
from pass_checks import captured_graph, compare_with_golden, gradients_of, graph_after
from small_networks import Called
from torch import nn
from torch.nn import functional


@pytest.mark.parametrize(("a_pass", "activation"), [(SaveOutputs(), nn.ReLU6()), (InvertOutputs(), nn.ELU())])
def test_before_and_after(a_pass, activation, golden):
    parts = {"layer": nn.Linear(8, 16, bias=False), "after": nn.Linear(16, 4, bias=False)}
    model = Called(lambda m, x: m.after(activation(m.layer(x))), **parts)
    compare_with_golden(golden, a_pass, captured_graph(model, torch.randn(4, 8)))


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
