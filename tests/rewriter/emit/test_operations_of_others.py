"""Operations, tensors and files that others have written: generated code calls exactly what capture recorded."""

from __future__ import annotations

import pytest
import torch
from side_by_side import assert_trains_alike, rewritten
from small_networks import Called
from torch import nn


@torch.library.custom_op("lowtide_tests::scaled", mutates_args=())
def scaled(x: torch.Tensor, *, pin_memory: bool = True) -> torch.Tensor:
    """An operation with an argument that factories have too, of another default."""
    return x * (3 if pin_memory else 5)


@scaled.register_fake
def _(x: torch.Tensor, *, pin_memory: bool = True) -> torch.Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("lowtide_tests::unused_rows", mutates_args=())
def unused_rows(x: torch.Tensor) -> torch.Tensor:
    """An operation whose name holds the word for results that nothing reads."""
    return x * 2


@unused_rows.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


for operation, factor in ((scaled, 5), (unused_rows, 2)):
    operation.register_autograd(
        lambda ctx, gradient, factor=factor: gradient * factor, setup_context=lambda ctx, inputs, output, **_: None
    )


def refuse(*_):
    raise RuntimeError("a method of a tensor was called")


class Overriding(torch.Tensor):
    """A tensor whose methods are not torch's."""

    view = t = transpose = permute = unsqueeze = expand = refuse


def network(forward) -> nn.Module:
    torch.manual_seed(0)
    return Called(forward, first=nn.Linear(8, 8), second=nn.Linear(8, 8))


@pytest.mark.parametrize("operation", [lambda x: scaled(x, pin_memory=False), unused_rows])
def test_operations_get_the_arguments_that_they_were_called_with(operation):
    assert_trains_alike(network(lambda m, x: m.second(operation(m.first(x).tanh())).square().mean()), torch.rand(16, 8))


def test_factories_are_called_without_what_they_do_anyway():
    small = rewritten(network(lambda m, x: (m.first(x) + torch.zeros(8, pin_memory=False)).sum()), torch.rand(16, 8))
    assert "pin_memory" not in small.code and "torch.strided" not in small.code


def test_methods_of_tensors_from_outside_are_not_called():
    def forward(m, x):
        turned = torch.transpose(torch.unsqueeze(torch.permute(torch.mul(x, 2), (1, 0)), 0), 1, 2)
        return torch.mean(torch.square(m.second(torch.tanh(m.first(turned)))))

    assert_trains_alike(network(forward), torch.rand(16, 8).as_subclass(Overriding))
    given = torch.rand(16, 8)
    given.view = given.t = given.unsqueeze = None
    assert_trains_alike(network(lambda m, x: m.first(torch.unsqueeze(torch.t(torch.t(x)), 0)).mean()), given)


def test_parameters_may_be_called_as_functions_of_generated_code_are():
    model = network(lambda m, x: (m.first(x @ m.own.unsqueeze(0)[0] + m.own_gradient) * m.require).square().mean())
    model.own, model.own_gradient = nn.Parameter(torch.rand(8, 8).t()), nn.Parameter(torch.rand(8))
    model.require = nn.Parameter(torch.rand(8))
    assert_trains_alike(model, torch.rand(16, 8))


def test_code_may_have_a_file_name_that_no_file_can_have():
    namespace: dict = {}
    exec(
        compile("def forward(m, x): return m.second(m.first(x).tanh()).mean()", "<" + "x" * 300 + ">", "exec"),
        namespace,
    )
    assert_trains_alike(network(namespace["forward"]), torch.rand(16, 8))
