"""Levels of a derivative: torch's own backward multiplies each element by the nearest, and they are the best."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lowtide.kernels.few_bit.activations import activation_of
from lowtide.kernels.few_bit.derivative_codecs import BITS, derivative_codecs, fitted_codes, usual_codes
from lowtide.kernels.few_bit.few_bit import decode_levels, encode_by_borders
from lowtide.kernels.few_bit.input_weights import Normal
from lowtide.kernels.few_bit.sample_levels import levels_of_samples
from lowtide.kernels.few_bit.saved_derivatives import SavedDerivative
from lowtide.kernels.few_bit.value_codes import value_codes
from torch import Tensor

aten = torch.ops.aten
ELU, SELU, CELU = (2.0, 1.0, 1.0), (1.6732632423543772, 1.0507009873554805, 1.0), (2.0, 1.0, 0.5)
SAVED = {
    "gelu": (SavedDerivative("gelu"), lambda x: x, aten.gelu_backward),
    "hardswish": (SavedDerivative("hardswish"), lambda x: x, aten.hardswish_backward),
    "sigmoid": (SavedDerivative("sigmoid", "output"), torch.sigmoid, aten.sigmoid_backward),
    "tanh": (SavedDerivative("tanh", "output"), torch.tanh, aten.tanh_backward),
    "elu": (SavedDerivative("elu", "input", ELU), lambda x: x, lambda g, x: aten.elu_backward(g, *ELU, False, x)),
    "celu": (SavedDerivative("elu", "input", CELU), lambda x: x, lambda g, x: aten.elu_backward(g, *CELU, False, x)),
    "selu of output": (
        SavedDerivative("elu", "output", SELU),
        F.selu,
        lambda g, y: aten.elu_backward(g, *SELU, True, y),
    ),
    "celu of output": (
        SavedDerivative("elu", "output", CELU),
        lambda x: F.celu(x, 2.0),
        lambda g, y: aten.elu_backward(g, *CELU, True, y),
    ),
    "softplus": (
        SavedDerivative("softplus", "input", (2.0, 1.5)),  # with a threshold so low that the derivative jumps there
        lambda x: x,
        lambda g, x: aten.softplus_backward(g, x, 2.0, 1.5),
    ),
    "logsigmoid": (
        SavedDerivative("logsigmoid", "buffer"),
        lambda x: torch.exp(-x.abs()),
        lambda g, z: aten.log_sigmoid_backward(g, -torch.ones_like(z), z) - g,
    ),
}


def inputs(count: int = 20_000) -> tuple[Tensor, Tensor]:
    """Return inputs of an activation, and the gradient of its output."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, generator=generator) * 1.5 - 0.3, torch.randn(count, generator=generator)


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("name", SAVED)
def test_torch_multiplies_each_element_by_the_nearest_level(name, bits):
    derivative, saving, backward = SAVED[name]
    x, gradient = inputs()
    saved, ones = saving(x), torch.ones(len(x))
    encoding, decoding = fitted_codes(derivative, bits, saved, gradient)
    decoded = decode_levels(encode_by_borders(saved, **encoding), **decoding, size=[len(x)], stride=[1], dtype=x.dtype)
    slope, level = backward(ones, saved).double(), backward(ones, decoded).double()
    representatives = torch.tensor(decoding["representatives"])
    levels = backward(torch.ones(len(representatives)), representatives).double()
    nearest = (slope[:, None] - levels).abs().min(1).values
    assert ((slope - level).abs() <= nearest + 1e-6).all()
    weights = gradient.double().square()
    if derivative.saved == "input":
        weights *= 1 + saved.double().square() / saved.double().square().mean()
    weights = weights.numpy()
    best = levels_of_samples(slope.numpy(), weights, 1 << bits)
    least = np.average(np.abs(slope.numpy()[:, None] - best).min(1) ** 2, weights=weights)
    error = np.average((slope - level).square().numpy(), weights=weights)
    jumps = (name, bits) == ("softplus", 1)  # over the best level, which no input has
    assert error <= (1.25 if jumps else 1.01) * least + 1e-12
    assert least < 0.04 * slope.var() * 4.0 ** (3 - bits) if bits > 1 else least < 0.5 * slope.var()


@pytest.mark.parametrize("name", ["gelu", "silu", "elu", "softplus"])
@pytest.mark.parametrize("bits", [1, 2, 4, 6])
def test_levels_of_samples_are_as_good_as_those_of_their_distribution(name, bits):
    samples = activation_of(name).slopes(inputs()[0].double().numpy())
    levels = levels_of_samples(samples, np.ones(len(samples)), 1 << bits)
    known = value_codes(activation_of(name), bits, Normal(-0.3, 1.5)).levels
    sample_error, distribution_error = (
        np.square(samples[:, None] - candidates).min(1).mean() for candidates in (levels, known)
    )
    assert len(levels) <= 1 << bits and (np.diff(levels) > 0).all()
    assert sample_error <= 1.001 * distribution_error


def test_few_different_samples_have_a_level_each():
    samples, weights = np.array([3.0, 1.0, 3.0, 2.0, 7.0]), np.array([1.0, 1.0, 2.0, 1.0, 0.0])
    assert levels_of_samples(samples, weights, 4).tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert levels_of_samples(samples, weights, 256).tolist() == pytest.approx([1.0, 2.0, 3.0])
    assert levels_of_samples(samples, weights, 1).tolist() == pytest.approx([12 / 5])
    assert levels_of_samples(np.ones(3), np.ones(3), 4).tolist() == [1.0]


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-3), (torch.float16, 1e-3)])
def test_outputs_that_float32_hardly_distinguishes_have_codes(dtype, limit):
    """Nearly all of a saturated sigmoid: levels between neighbours in float32 are left out."""
    saved = torch.sigmoid(torch.linspace(12, 16, 5000)).to(dtype)
    encoding, decoding = fitted_codes(SavedDerivative("sigmoid", "output"), 8, saved, torch.ones(5000))
    code = encode_by_borders(saved, **encoding)
    decoded = decode_levels(code, **decoding, size=[5000], stride=[1], dtype=dtype)
    assert (decoded * (1 - decoded) - saved * (1 - saved)).abs().max() < limit


def test_what_cannot_be_fitted_has_the_usual_codes():
    derivative, usual = SavedDerivative("tanh", "output"), usual_codes(SavedDerivative("tanh", "output"), 2)
    y, ones = torch.linspace(-0.9, 0.9, 100), torch.ones(100)
    for saved, gradient in (
        (y / 0, ones),
        (y, ones * torch.inf),
        (torch.ones(100), ones),
        (y, 0 * ones),
        (y[:0], ones[:0]),
    ):
        assert fitted_codes(derivative, 2, saved, gradient) == usual
    assert fitted_codes(derivative, 2, y, ones) != usual


def test_there_are_codes_of_one_to_eight_bits():
    codecs = derivative_codecs(SavedDerivative("gelu"))
    sizes = [codec.encode(torch.zeros(800), **codec.arguments[0]).numel() for codec in codecs]
    assert sizes == [100 * bits for bits in BITS] and BITS[0] == 1 and BITS[-1] == 8
