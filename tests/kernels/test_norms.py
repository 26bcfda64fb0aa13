"""Backward of layer and RMS normalization from x̂ or y, against torch's own backward from the input."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from lowtide.kernels import norms
from lowtide.kernels.norms import (
    BIAS,
    INPUT,
    WEIGHT,
    layer_norm_backward_from_normalized,
    layer_norm_backward_from_output,
    recoverable,
)
from torch import Tensor

ALL = INPUT | WEIGHT | BIAS
EPSILON = 1e-5


def normalized(x: Tensor, shape: tuple[int, ...], centred: bool) -> tuple[Tensor, Tensor]:
    """x̂ and r."""
    over = tuple(range(-len(shape), 0))
    x = x - x.mean(over, keepdim=True) if centred else x
    r = (x.square().mean(over, keepdim=True) + EPSILON).rsqrt()
    return x * r, r


def torchs(x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor | None, centred: bool) -> list[Tensor]:
    """Torch's gradients of x, weight and bias, in float64."""
    inputs = [x.double().detach(), weight.double().detach(), torch.zeros_like(weight).double()]
    if bias is not None:
        inputs[2] = bias.double().detach()
    x, weight, bias = (tensor.requires_grad_() for tensor in inputs)
    if centred:
        y = F.layer_norm(x, weight.shape, weight, bias, EPSILON)
    else:
        y = F.rms_norm(x, weight.shape, weight, EPSILON) + bias
    return list(torch.autograd.grad(y, (x, weight, bias), gradient.double()))


def error(ours: Tensor, exact: Tensor) -> float:
    """Relative to the norm."""
    return ((ours.double() - exact).norm() / exact.norm()).item()


def case(size: tuple[int, ...], shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, a gradient of y, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return [tensor.to(dtype) for tensor in (3 * x + 1, gradient, weight, bias)]


SIZES = [
    ((600, 768), (768,)),
    ((3, 5, 7), (7,)),
    ((4, 6, 5, 3), (5, 3)),
    ((1, 5000), (5000,)),
    ((5000, 33), (33,)),
    ((7,), (7,)),
]
ONE = ((2, 3, 1), (1,))


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("size", "shape"), SIZES, ids=str)
def test_gradients_in_single_precision_are_right_to_a_millionth(size, shape, centred):
    x, gradient, weight, bias = case(size, shape)
    x_normalized, r = normalized(x.double(), shape, centred)
    ours = layer_norm_backward_from_normalized(gradient, x_normalized.float(), r.float(), weight, centred, ALL)
    for result, exact in zip(ours, torchs(x, gradient, weight, bias, centred), strict=True):
        assert result.shape == exact.shape
        assert error(result, exact) <= 1e-6


@pytest.mark.parametrize("centred", [True, False])
def test_a_row_of_one_number_has_next_to_no_gradient(centred):
    x, gradient, weight, bias = case(*ONE)
    x_normalized, r = normalized(x.double(), (1,), centred)
    ours = layer_norm_backward_from_normalized(gradient, x_normalized.float(), r.float(), weight, centred, ALL)
    for result, exact in zip(ours, torchs(x, gradient, weight, bias, centred), strict=True):
        torch.testing.assert_close(result.double(), exact, rtol=1e-6, atol=1e-6 * max(1, r.max().item()))


@pytest.mark.parametrize("centred", [True, False])
def test_errors_are_no_greater_than_those_of_torchs_own_backward(centred):
    x, gradient, weight, bias = case((2048, 768), (768,))
    exact = torchs(x, gradient, weight, bias, centred)
    x_normalized, r = normalized(x.double(), (768,), centred)
    ours = layer_norm_backward_from_normalized(gradient, x_normalized.float(), r.float(), weight, centred, ALL)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    if centred:
        y = F.layer_norm(leaves[0], (768,), leaves[1], leaves[2], EPSILON)
    else:
        y = F.rms_norm(leaves[0], (768,), leaves[1], EPSILON) + leaves[2]
    for result, of_torch, right in zip(ours, torch.autograd.grad(y, leaves, gradient), exact, strict=True):
        assert error(result, right) <= max(1.5 * error(of_torch, right), 2e-7)


def test_what_torchs_own_layer_norm_returns_will_do_for_the_normalized_input():
    x, gradient, weight, bias = case((600, 768), (768,))
    x_normalized, _, r = torch.native_layer_norm(x, (768,), None, None, EPSILON)
    ours = layer_norm_backward_from_normalized(gradient, x_normalized, r, weight, True, ALL)
    for result, exact in zip(ours, torchs(x, gradient, weight, bias, True), strict=True):
        assert error(result, exact) <= 1e-6


@pytest.mark.parametrize("centred", [True, False])
def test_weights_of_zero_are_no_obstacle(centred):
    x, gradient, weight, bias = case((64, 96), (96,))
    weight[::3] = 0
    x_normalized, r = normalized(x.double(), (96,), centred)
    ours = layer_norm_backward_from_normalized(gradient, x_normalized.float(), r.float(), weight, centred, ALL)
    for result, exact in zip(ours, torchs(x, gradient, weight, bias, centred), strict=True):
        assert error(result, exact) <= 1e-6


@pytest.mark.parametrize("centred", [True, False])
def test_the_output_alone_will_do_where_weights_are_away_from_zero(centred):
    x, gradient, weight, bias = case((600, 768), (768,))
    weight = weight.sign() * (weight.abs() + 0.3)
    assert recoverable(weight, bias)
    x_normalized, r = normalized(x.double(), (768,), centred)
    for shift in (bias, None):
        y = (x_normalized * weight + (0 if shift is None else shift)).float()
        ours = layer_norm_backward_from_output(gradient, y, r.float(), weight, shift, centred, ALL)
        for result, exact in zip(ours, torchs(x, gradient, weight, shift, centred), strict=True):
            assert error(result, exact) <= 1e-6


def test_an_output_from_which_the_normalized_input_cannot_be_had_is_told_apart():
    weight, bias = torch.ones(8), torch.zeros(8)
    assert recoverable(weight, bias)
    assert recoverable(weight, None)
    assert recoverable(None, None)
    assert recoverable(1e-6 * weight, bias)
    weight[3] = 0
    assert not recoverable(weight, bias)
    weight[3] = 1e-6
    assert recoverable(weight, bias)
    bias[3] = 1
    assert not recoverable(weight, bias)
    assert not recoverable(torch.tensor([1.0, torch.nan]), None)


@pytest.mark.parametrize("mask", range(8))
def test_gradients_that_are_not_wanted_are_empty_and_the_others_unchanged(mask):
    x, gradient, weight, _ = case((37, 65), (65,))
    x_normalized, r = normalized(x, (65,), True)
    whole = layer_norm_backward_from_normalized(gradient, x_normalized, r, weight, True, ALL)
    part = layer_norm_backward_from_normalized(gradient, x_normalized, r, weight, True, mask)
    for bit, ours, expected in zip((INPUT, WEIGHT, BIAS), part, whole, strict=True):
        if mask & bit:
            torch.testing.assert_close(ours, expected)
        else:
            assert ours.shape == (0,)


@pytest.mark.parametrize("centred", [True, False])
def test_without_a_weight_it_is_as_with_ones(centred):
    for size, shape in (*SIZES, ONE):
        x, gradient, weight, _ = case(size, shape)
        x_normalized, r = normalized(x, shape, centred)
        plain = layer_norm_backward_from_normalized(gradient, x_normalized, r, None, centred, ALL)
        ones = layer_norm_backward_from_normalized(gradient, x_normalized, r, torch.ones_like(weight), centred, ALL)
        for ours, expected in zip(plain, ones, strict=True):
            assert torch.equal(ours.flatten(), expected.flatten())


@pytest.mark.parametrize("centred", [True, False])
def test_plain_torch_and_c_agree(centred, monkeypatch):
    x, gradient, weight, bias = case((300, 129), (129,))
    x_normalized, r = normalized(x, (129,), centred)
    arguments = (gradient, x_normalized, r, weight, centred, ALL)
    fast = layer_norm_backward_from_normalized(*arguments)
    from_output = (gradient, x_normalized * weight + bias, r, weight, bias, centred, ALL)
    fast_too = layer_norm_backward_from_output(*from_output)
    monkeypatch.setattr(norms, "native", lambda *_: None)
    monkeypatch.setattr(norms, "_CHUNK", 1000)
    for ours, expected in zip(layer_norm_backward_from_normalized(*arguments), fast, strict=True):
        assert error(ours, expected.double()) <= 1e-6
    for ours, expected in zip(layer_norm_backward_from_output(*from_output), fast_too, strict=True):
        assert error(ours, expected.double()) <= 1e-6


@pytest.mark.parametrize("centred", [True, False])
def test_half_precision_is_right_to_a_rounding(centred):
    x, gradient, weight, bias = case((200, 256), (256,), torch.bfloat16)
    x_normalized, r = normalized(x.double(), (256,), centred)
    ours = layer_norm_backward_from_normalized(gradient, x_normalized.bfloat16(), r.float(), weight, centred, ALL)
    for result, exact in zip(ours, torchs(x, gradient, weight, bias, centred), strict=True):
        assert result.dtype == torch.bfloat16
        assert error(result, exact) <= 4e-3


def test_tensors_that_do_not_lie_in_order_and_none_at_all_are_taken():
    x, gradient, weight, bias = case((6, 8, 10), (10,))
    turned, other = x.transpose(0, 1), gradient.transpose(0, 1).contiguous().transpose(0, 1).transpose(0, 1)
    x_normalized, r = normalized(turned, (10,), True)
    ours = layer_norm_backward_from_normalized(other, x_normalized, r, weight, True, ALL)
    for result, exact in zip(ours, torchs(turned, other, weight, bias, True), strict=True):
        assert error(result, exact) <= 1e-6
    nothing = layer_norm_backward_from_normalized(
        torch.ones(0, 10), torch.ones(0, 10), torch.ones(0, 1), weight, True, ALL
    )
    assert nothing[0].shape == (0, 10)
    assert torch.equal(nothing[1], torch.zeros(10))
    assert torch.equal(nothing[2], torch.zeros(10))


class Normalization(torch.autograd.Function):
    """Keeps x̂ or y, r and the affine map."""

    @staticmethod
    def forward(ctx, x, weight, bias, centred, from_output):
        x_normalized, r = normalized(x, weight.shape, centred)
        y = x_normalized * weight + bias
        ctx.save_for_backward(y if from_output else x_normalized, r, weight, bias)
        ctx.rest = centred, from_output
        return y

    @staticmethod
    def backward(ctx, *gradients):
        kept, r, weight, bias = ctx.saved_tensors
        centred, from_output = ctx.rest
        if from_output:
            results = layer_norm_backward_from_output(gradients[0], kept, r, weight, bias, centred, ALL)
        else:
            results = layer_norm_backward_from_normalized(gradients[0], kept, r, weight, centred, ALL)
        return *results, None, None


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("from_output", [True, False])
def test_the_gradient_is_that_of_the_function(centred, from_output):
    for size, shape in (((5, 7), (7,)), ((2, 3, 4, 2), (4, 2))):
        x, _, weight, bias = (tensor.requires_grad_() for tensor in case(size, shape, torch.float64))
        assert torch.autograd.gradcheck(Normalization.apply, (x, weight, bias, centred, from_output))


def test_shapes_are_known_without_data():
    for (size, shape), weighed, mask in itertools.product((*SIZES[1:4], ONE), (True, False), (ALL, INPUT, WEIGHT)):
        x, gradient, weight, bias = case(size, shape)
        x_normalized, r = normalized(x, shape, True)
        arguments = (gradient, x_normalized, r, weight if weighed else None, True, mask)
        torch.library.opcheck(layer_norm_backward_from_normalized, arguments)
        torch.library.opcheck(layer_norm_backward_from_output, (gradient, x, r, weight, bias, True, mask))
