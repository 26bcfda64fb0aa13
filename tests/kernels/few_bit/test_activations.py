"""Derivatives are autograd's of torch's own functions, and what has none is refused by name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowtide.kernels.few_bit.activations import ACTIVATIONS, Activation, activation_of
from torch import Tensor


def autograds(activation: Activation, x: Tensor) -> Tensor:
    """The derivative that torch gives."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(activation.function(x).sum(), x)[0]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_the_derivative_is_autograds(activation):
    x = torch.linspace(-19.97, 19.97, 20_001, dtype=torch.float64)
    broken = torch.tensor(activation.breakpoints or (1e9,), dtype=torch.float64)
    x = x[((x[:, None] - broken).abs() > 1e-9).all(1)]
    # torch's own tail of mish and softplus is cut where it is below 1e-8
    torch.testing.assert_close(activation.derivative(x), autograds(activation, x), rtol=1e-9, atol=3e-8)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_the_derivative_is_a_number_far_out_too(activation):
    assert np.isfinite(activation.slopes(np.array([-1e6, -1e3, 1e3, 1e6]))).all()


def test_a_function_of_ones_own_is_differentiated_by_autograd():
    squared = activation_of(lambda x: F.relu(x) ** 2)
    assert squared.slopes(np.array([[-1.0, 0.5], [2.0, 3.0]])).tolist() == [[0, 1], [4, 6]]
    with torch.no_grad():
        assert squared.slopes(np.array([2.0])) == 4
    with torch.inference_mode():
        assert squared.slopes(np.array([2.0])) == 4


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("gellu", r"no activation is called 'gellu': did you mean gelu\? Known are gelu, gelu_tanh, silu"),
        ("entropy", r"no activation is called 'entropy': known are gelu"),
        (3, "3 is not an activation"),
        (lambda x: x.sum(), r"gives torch.float64 of shape \(\) for float64 of shape \(16,\)"),
        (lambda x: 1.0, "gives float for float64"),
        (lambda x: torch.softmax(x, 0), "not a scalar function"),
    ],
)
def test_what_is_no_activation_is_refused(named, message):
    with pytest.raises(ValueError, match=message):
        activation_of(named)


def test_a_derivative_that_is_not_a_number_is_reported_with_its_input():
    with pytest.raises(ValueError, match=r"the derivative of log at -1 is nan: choose a weight"):
        Activation("log", torch.log, lambda x: x.sqrt()).slopes(np.array([1.0, -1.0]))


def test_a_function_that_autograd_cannot_follow_is_refused():
    with pytest.raises(ValueError, match="operations that autograd follows"):
        activation_of(lambda x: x.detach() * 2).slopes(np.array([1.0]))
