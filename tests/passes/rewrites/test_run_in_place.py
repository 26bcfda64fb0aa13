"""Kernels that eager runs in place are joined again, where nothing else reads what they write over."""

import pytest
import torch
from lowtide.passes.rewrites.run_in_place import IN_PLACE, RunInPlace
from lowtide.passes.step_graph import StepGraph
from pass_checks import captured_step, compare_with_golden
from small_networks import Called
from torch import nn
from torch.nn import functional


def step_of(function, grad: bool = False) -> StepGraph:
    """The step graph of a linear layer and a function of its result, before any pass over step graphs."""
    model = Called(lambda m, x: function(m.layer(x)), layer=nn.Linear(16, 16))
    return captured_step(model, torch.randn(4, 16, requires_grad=grad))


def test_before_and_after(golden):
    compare_with_golden(golden, RunInPlace(), step_of(lambda y: functional.dropout(y, 0.1)))


def test_a_joined_kernel_draws_and_makes_what_the_last_one_made():
    step = step_of(lambda y: functional.dropout(y, 0.1))
    (kernel,) = (k for k in RunInPlace()(step).compute_kernels if len(k.calls) == 3)
    (last,) = (k for k in step.kernels if k.name == kernel.name)
    assert kernel.random and kernel.makes == last.makes


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
    forward = [k for k in RunInPlace()(step_of(function)).compute_kernels if k.phase == "forward"]
    assert any("div" in kernel.name for kernel in forward)
    assert all(len(kernel.calls) == 1 for kernel in forward)


def test_an_output_is_not_overwritten():
    step = step_of(lambda y: (lambda e: (e, e / 2.0))(y.detach().sin() + y))
    joined = RunInPlace()(step)
    made = {storage for kernel in joined.kernels for storage in kernel.makes}
    assert {joined.storage_of[node] for node in joined.outputs} <= made
