"""Gradients are accumulated into .grad as autograd does it: cloned where it would clone, and the plan sees it."""

import lowtide
import pytest
import torch
from lowtide.passes.build_step_graph import build_step_graph
from lowtide.passes.pipeline import run_passes
from lowtide.passes.rewrites.accumulate_grads import AccumulateGrads
from lowtide.passes.rewrites.assign_blocks import AssignBlocks
from lowtide.rewriter.capture.capture import capture
from pass_checks import captured_step, compare_with_golden
from torch import nn


class Called(nn.Module):
    """Parameters under names, and a function of them and the input."""

    def __init__(self, function, **parameters) -> None:
        super().__init__()
        self.function = function
        for name, parameter in parameters.items():
            setattr(self, name, parameter)

    def forward(self, x):
        return self.function(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))


def tied(function):
    model = Called(function, first=parameter(16, 16))
    model.second = model.first
    return model


CASES = {
    "plain": lambda: Called(lambda m, x: x @ m.w, w=parameter(16, 16)),
    "transposed": lambda: Called(lambda m, x: x @ m.w.t(), w=parameter(16, 16)),
    "transposed parameter": lambda: Called(lambda m, x: x @ m.w, w=nn.Parameter(torch.randn(16, 16).t())),
    "sliced": lambda: Called(
        lambda m, x: (x @ torch.cat([m.first, m.second], 1)).tanh(), first=parameter(16, 8), second=parameter(16, 24)
    ),
    "sliced by rows": lambda: Called(
        lambda m, x: torch.cat([m.first, m.second])[:, None] * x.sum(), first=parameter(8), second=parameter(24)
    ),
    "tied": lambda: tied(lambda m, x: (x @ m.first).tanh() @ m.second.t()),
    "shared by two": lambda: Called(
        lambda m, x: (x + m.first + m.second).sin(), first=parameter(4, 16), second=parameter(4, 16)
    ),
    "expanded": lambda: Called(lambda m, x: x.sum() * m.w.sum() + (x * 0).sum(0), w=parameter(16, 16)),
    "the incoming gradient": lambda: Called(lambda m, x: m.w + 0 * x.sum(), w=parameter(4, 16)),
    "channels last": lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
    "two uses": lambda: Called(lambda m, x: x @ m.w + x.sin() @ m.w, w=parameter(16, 16)),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_all_layouts_are_predicted_to_the_byte(case):
    model = CASES[case]()
    x = torch.randn(2, 3, 8, 8) if case == "channels last" else torch.randn(4, 16)
    report = lowtide.verify(model, "100%", (x,), costs="flops")
    assert report.same_bits, str(report)
    assert report.measured_peak_bytes == report.plan.peak_bytes, str(report)


def accumulations(case: str, present: bool = False):
    model = CASES[case]()
    captured = capture(model, (torch.randn(4, 16),), {})
    grads = frozenset(captured.gradients) if present else frozenset()
    step = AccumulateGrads(grads)(build_step_graph(captured.graph))
    return [k for k in step.kernels if k.role == "accumulate"]


def test_before_and_after(golden):
    step = AssignBlocks()(captured_step(CASES["sliced"](), torch.randn(4, 16)))
    compare_with_golden(golden, AccumulateGrads(), step)


def test_a_gradient_laid_out_like_its_parameter_is_stolen():
    assert [bool(kernel.makes) for kernel in accumulations("plain")] == [False]


def test_one_of_two_parameters_with_the_same_gradient_gets_a_clone():
    assert sorted(bool(kernel.makes) for kernel in accumulations("shared by two")) == [False, True]


def test_a_gradient_that_is_the_callers_is_cloned():
    assert [bool(kernel.makes) for kernel in accumulations("the incoming gradient")] == [True]


def test_nothing_is_cloned_where_a_gradient_is_added_to_one_that_is_there():
    for case in ("shared by two", "the incoming gradient", "sliced"):
        assert not any(kernel.makes for kernel in accumulations(case, present=True))


def test_each_gradient_is_accumulated_once_after_its_last_kernel():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)) for _ in range(4)))
    captured = capture(model, (torch.randn(64, 16),), {})
    _, step = run_passes(captured.graph)
    kernels = [k for k in step.kernels if k.role == "accumulate"]
    assert sorted(k.target.meta["source"].name for k in kernels) == sorted(n for n, _ in model.named_parameters())
    made = {s: i for i, k in enumerate(step.kernels) for s in (*k.makes, *k.writes)}
    for index, kernel in enumerate(step.kernels):
        if kernel.role == "accumulate":
            assert all(made[s] < index or s in kernel.makes for s in kernel.reads)
            following = [k.block for k in step.kernels[index + 1 :] if k.role == "compute"]
            assert all(block <= kernel.block for block in following)
