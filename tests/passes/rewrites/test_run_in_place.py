"""Kernels that eager runs in place are joined again, and sums of gradients take no memory of their own."""

import inspect
import re

import pytest
import torch
from lowtide.passes.rewrites.free_factories import FreeFactories
from lowtide.passes.rewrites.run_in_place import IN_PLACE, WRITTEN_OUT, RunInPlace, in_place_variant
from lowtide.passes.rewrites.sum_in_place import SumInPlace
from lowtide.passes.step_graph import StepGraph, build_step_graph
from lowtide.rewriter.capture.capture import capture
from torch import nn
from torch.nn import functional


class Called(nn.Module):
    """A linear layer and a function of its result."""

    def __init__(self, function) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(16, 16), function

    def forward(self, x):
        return self.function(self.layer(x))


def step_of(function, grad: bool = False) -> StepGraph:
    """The step graph of a module, before any pass over step graphs."""
    captured = capture(Called(function), (torch.randn(4, 16, requires_grad=grad),), {})
    return build_step_graph(FreeFactories()(captured.graph))


def test_the_docstring_shows_what_joining_does():
    doc = inspect.getdoc(RunInPlace) or ""
    before, after = (re.search(rf"{word}: +(.+)$", doc, re.MULTILINE).group(1) for word in ("before", "after"))
    step = step_of(lambda y: functional.dropout(y, 0.1))
    joined = RunInPlace()(step)
    targets = re.findall(r"aten\.\w+(?:\.\w+)?", before)
    kernels = [k for k in step.kernels if k.role == "compute"]
    start = next(i for i, k in enumerate(kernels) if "empty" in str(k.calls[0].target))
    names = [str(k.calls[0].target).removesuffix(".default") for k in kernels[start : start + 3]]
    assert names == targets
    (kernel,) = (k for k in joined.kernels if len(k.calls) == 3)
    texts = [str(kernel.calls[0].target).removesuffix(".default"), *(in_place_variant(c) for c in kernel.calls[1:])]
    assert texts == re.findall(r"aten\.\w+(?:\.\w+)?", after) and "one kernel" in after
    assert kernel.random and kernel.makes == kernels[start + 2].makes


def test_each_in_place_variant_computes_the_same_bits():
    x = torch.rand(5, 7) + 0.1
    for name, variant in IN_PLACE.items():
        argument = 0.7 if name.endswith((".p", "Scalar")) else torch.rand(5, 7) + 0.5
        results = []
        for text in (name, variant):
            torch.manual_seed(0)
            _, packet, overload = text.split(".")
            results.append(getattr(getattr(torch.ops.aten, packet), overload)(x.clone(), argument))
        assert torch.equal(*results)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.exp() / 3.0,  # backward reads the result of exp
        lambda y: (lambda e: (e / 3.0) * e)(y.sin().detach()) + y,  # and here forward reads what is divided
    ],
)
def test_an_operand_that_others_read_is_not_overwritten(function):
    forward = [k for k in RunInPlace()(step_of(function)).kernels if k.role == "compute" and k.phase == "forward"]
    assert any("div" in kernel.name for kernel in forward)
    assert all(len(kernel.calls) == 1 for kernel in forward)


def test_an_output_is_not_overwritten():
    step = step_of(lambda y: (lambda e: (e, e / 2.0))(y.detach().sin() + y))
    joined = RunInPlace()(step)
    made = {storage for kernel in joined.kernels for storage in kernel.makes}
    assert {joined.storage_of[node] for node in joined.outputs} <= made


def test_the_sum_of_two_gradients_takes_the_place_of_one():
    step = step_of(lambda y: y.sin() + y.cos() + y.tanh())
    summed = SumInPlace()(step)
    sums = [k for k in summed.kernels if k.phase == "backward" and "add" in k.name]
    assert len(sums) == 2
    for kernel in sums:
        assert kernel.makes == () and len(kernel.writes) == 1 and kernel.destination is not None
    assert sum(len(k.makes) for k in summed.kernels) == sum(len(k.makes) for k in step.kernels) - 2


def test_a_gradient_that_is_read_later_is_not_written_over():
    # The gradient of the sum goes to both sides: it is still needed when the first side's is added.
    step = SumInPlace()(step_of(lambda y: (lambda h: h + h.sin())(y.exp())))
    readers = {}
    for index, kernel in enumerate(step.kernels):
        for storage in kernel.reads:
            readers.setdefault(storage, []).append(index)
    for index, kernel in enumerate(step.kernels):
        for storage in kernel.writes:
            others = [node for node, at in step.storage_of.items() if at == storage and node in step.outputs]
            assert not others and index in readers[storage]


@pytest.mark.parametrize("function", [lambda y: y + y, lambda y: y * 2 + y.t().contiguous().t()[:, :16][:4] * 1])
def test_sums_of_one_tensor_with_itself_stay_right(function):
    step = SumInPlace()(step_of(function, grad=True))
    assert step.kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "dim"), [((64, 1000), 1), ((3, 4, 33, 70), 3), ((5, 17, 9), 1), ((2, 3), 0), ((7,), 0)]
)
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_softmaxs_gradient_has_the_same_bits_where_it_is_written_over_what_came_in(name, size, dim, dtype):
    gradient, x = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    output = torch.log_softmax(x, dim) if "log" in name else torch.softmax(x, dim)
    _, packet, overload = name.split(".")
    expected = getattr(getattr(torch.ops.aten, packet), overload)(gradient, output, dim, dtype)
    variant, written = WRITTEN_OUT[name]
    _, packet, overload = variant.split(".")
    getattr(getattr(torch.ops.aten, packet), overload)(gradient, output, dim, dtype, **{written: gradient})
    assert torch.equal(gradient, expected)


def test_a_softmaxs_gradient_takes_no_memory_of_its_own():
    step = step_of(lambda y: torch.log_softmax(torch.softmax(y * 2, -1) * 3, -1).square().sum(), grad=True)
    written = [k for k in SumInPlace()(step).kernels if k.writes and "softmax" in str(k.calls[0].target)]
    assert len(written) == 2 and not any(k.makes for k in written)
