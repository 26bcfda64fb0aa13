"""Sums and products of gradients, and softmax's gradients, take no memory of their own."""

import pytest
import torch
from lowtide.passes.rewrites.run_in_place import WRITTEN_OUT
from lowtide.passes.rewrites.sum_in_place import SumInPlace
from lowtide.passes.step_graph import StepGraph
from pass_checks import captured_step, compare_with_golden
from small_networks import Called
from torch import nn


def step_of(function, grad: bool = False) -> StepGraph:
    """The step graph of a linear layer and a function of its result, before any pass over step graphs."""
    model = Called(lambda m, x: function(m.layer(x)), layer=nn.Linear(16, 16))
    return captured_step(model, torch.randn(4, 16, requires_grad=grad))


def test_before_and_after(golden):
    compare_with_golden(golden, SumInPlace(), step_of(lambda y: y.sin() + y.cos()))


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
    written = [k for k in SumInPlace()(step).compute_kernels if k.writes and "softmax" in str(k.calls[0].target)]
    assert len(written) == 2 and not any(k.makes for k in written)
