"""Backward of activations from their output, against torch's own backward from the input."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lowtide.kernels import inverses
from lowtide.kernels.inverse_tables import INVERTED, table
from lowtide.kernels.inverses import SIDED, activation_backward_from_output, activation_side
from torch import Tensor

FUNCTIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardtanh": partial(F.hardtanh, min_val=-0.75, max_val=0.75),
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.3),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": partial(F.elu, alpha=1.3),
    "celu": partial(F.celu, alpha=0.6),
    "selu": F.selu,
    "softplus": partial(F.softplus, beta=1.5),
}
CURVATURE = {"gelu": 0.798, "gelu_tanh": 0.798, "silu": 0.5, "mish": 0.645, "hardswish": 1 / 3}  # the largest |f''|
PARAMETERS = {"hardtanh": 0.75, "leaky_relu": 0.3, "elu": 1.3, "celu": 0.6, "softplus": 1.5}
DIRECT = [kind for kind in FUNCTIONS if kind not in SIDED]
SAME_BITS = [kind for kind in DIRECT if kind not in ("elu", "celu", "selu", "softplus")]


def side_of(x: Tensor, kind: str) -> Tensor | None:
    return activation_side(x, kind) if kind in SIDED else None


def ours(x: Tensor, kind: str, gradient: Tensor | None = None) -> Tensor:
    """The gradient of x, from what is left of it after the forward."""
    y, side = FUNCTIONS[kind](x), side_of(x, kind)
    gradient = torch.ones_like(y) if gradient is None else gradient
    return activation_backward_from_output(gradient, y, side, kind, PARAMETERS.get(kind, 0.0))


def torchs(x: Tensor, kind: str, gradient: Tensor | None = None) -> Tensor:
    x = x.detach().requires_grad_()
    y = FUNCTIONS[kind](x)
    return torch.autograd.grad(y, x, torch.ones_like(y) if gradient is None else gradient)[0]


def errors(x: Tensor, kind: str) -> Tensor:
    """Of the derivative, against torch's in float64."""
    return ours(x, kind).double() - torchs(x.double(), kind)


def grid(kind: str, dtype: torch.dtype) -> Tensor:
    """From -12 to 12, with all that is dense around the minimum, where y says least about x."""
    minimum = -1.5 if kind == "hardswish" else table(kind).x
    wide = torch.linspace(-12, 12, 600_001, dtype=torch.float64)
    close = minimum + torch.linspace(-0.05, 0.05, 400_001, dtype=torch.float64)
    return torch.cat([wide, close]).to(dtype)


def normal(dtype: torch.dtype) -> Tensor:
    return torch.randn(1_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


def allowed(x: Tensor, kind: str) -> Tensor:
    """How far the derivative at x (float32) may be off, by what this processor makes of the output.

    On one side of the minimum the derivative s is a function of the output y, and d(s²)/dy = 2 s · f'' / s = 2 f''.
    So an output that is off by e moves s² by at most 2 M e, where M is the largest |f''|. Since s keeps its sign there,
    it moves by at most sqrt(2 M e), and by at most 2 M e / |s|. An output below the minimum counts as the minimum,
    which is closer. The inversion itself adds at most 4e-7 (`test_inversion_adds_little_to_the_error_of_rounding`).
    """
    e = (FUNCTIONS[kind](x).double() - FUNCTIONS[kind](x.double())).abs()
    moved = 2 * CURVATURE[kind] * e
    return torch.minimum(moved.sqrt(), moved / torchs(x.double(), kind).abs().clamp_min(1e-300)) + 4e-7


@pytest.mark.parametrize("kind", SIDED)
def test_the_derivative_in_single_precision_is_as_good_as_its_output_allows(kind):
    # Around the minimum |x| < 1.6 and y = x g(x), 0 <= g <= 1. Where erf is formula 7.1.26 of Abramowitz and Stegun, as
    # oneDNN has it without AVX-512, g is off by 1.5e-7, which is 2.5 units of 2^-24, and by some 13 roundings; exp and
    # tanh are off by 4 units in the last place at most. So y is off by less than 16 units, times |x|.
    anywhere = (2 * CURVATURE[kind] * 1.6 * 16 * 2**-24) ** 0.5  # 1.6e-3 for GELU
    for x in (grid(kind, torch.float32), normal(torch.float32)):
        off = errors(x, kind).abs()
        assert (off <= allowed(x, kind)).all()
        assert off.max() <= anywhere
    assert off.square().mean() <= 1e-10  # of normal inputs; few of them are next to the minimum


@pytest.mark.parametrize("kind", INVERTED)
def test_the_derivative_in_half_precision_is_as_good_as_its_output_allows(kind):
    assert errors(grid(kind, torch.bfloat16), kind).abs().max() <= 2e-2
    assert errors(normal(torch.bfloat16), kind).square().mean() <= 5e-6
    assert errors(normal(torch.float16), kind).square().mean() <= 1e-6


def test_hardswish_in_half_precision_is_as_good_as_its_output_allows():
    assert errors(grid("hardswish", torch.bfloat16), "hardswish").abs().max() <= 2.5e-2
    assert errors(normal(torch.bfloat16), "hardswish").square().mean() <= 6.5e-6


@pytest.mark.parametrize("kind", SIDED)
def test_the_derivative_in_double_precision_is_right_to_a_billionth(kind):
    # No x but the minimum is closer to it than 2.5e-7, where an output off by e moves the derivative by e / 2.5e-7:
    # with erf, exp and tanh off by 4 units in the last place, e is at most 5e-16.
    assert errors(grid(kind, torch.float64)[::7], kind).abs().max() <= 2e-9


@pytest.mark.parametrize("kind", INVERTED)
def test_inversion_adds_little_to_the_error_of_rounding(kind):
    # what the rounded output's own inverse has for a derivative is known from float64
    x = grid(kind, torch.float32)[::3]
    y, side = FUNCTIONS[kind](x), activation_side(x, kind)
    exact = torch.empty_like(y, dtype=torch.float64)
    inverses.backward_plainly(torch.ones_like(exact), y, side, kind, exact)
    single = activation_backward_from_output(torch.ones_like(y), y, side, kind, 0.0)
    assert (single - exact).abs().max() <= 4e-7


@pytest.mark.parametrize("kind", INVERTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_far_from_the_minimum_the_derivative_is_zero_or_one(kind, dtype):
    assert torch.equal(ours(torch.tensor([30.0, 1e3, 1e30], dtype=dtype), kind), torch.ones(3, dtype=dtype))
    assert torch.equal(ours(torch.tensor([-800.0, -1e4, -1e30], dtype=dtype), kind).abs(), torch.zeros(3, dtype=dtype))
    y = torch.tensor([0.0, -0.0, 1e30, torch.inf], dtype=dtype)
    left_left_right_right = torch.tensor([0b1100], dtype=torch.uint8)
    slopes = activation_backward_from_output(torch.ones_like(y), y, left_left_right_right, kind, 0.0)
    assert slopes.abs().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_not_a_number_stays_so(kind, dtype):
    x = torch.tensor([0.5, torch.nan, -0.3, torch.nan], dtype=dtype)
    if kind in ("relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu"):
        # torch's own backward chooses by comparing, and lets some of them through as numbers
        assert torch.equal(ours(x, kind).isnan(), torchs(x, kind).isnan())
    else:
        assert ours(x, kind).isnan().tolist() == [False, True, False, True]


@pytest.mark.parametrize("kind", SIDED)
def test_a_gradient_that_is_not_a_number_stays_so(kind):
    gradient = torch.tensor([1.0, torch.nan, torch.nan])
    assert ours(torch.tensor([0.5, 0.5, -2.0]), kind, gradient).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("kind", SAME_BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_where_torch_itself_works_from_the_output_the_bits_are_its_own(kind, dtype):
    x = torch.randn(4000).mul(4).to(dtype)
    x[:6] = torch.tensor([0.0, -0.0, 0.75, -0.75, 6.0, 1e30])
    gradient = torch.randn(4000).to(dtype)
    assert torch.equal(ours(x, kind, gradient), torchs(x, kind, gradient))


@pytest.mark.parametrize("kind", DIRECT)
def test_formulas_of_the_output_are_right_to_a_few_roundings(kind):
    # torch takes 1 / alpha of celu's backward in single precision, and softplus for the identity from 20 on
    double = {"celu": 1e-7, "softplus": 3e-9}.get(kind, 1e-14)
    for dtype, bound in ((torch.float64, double), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        assert errors(torch.randn(20_000).mul(4).to(dtype), kind).abs().max() <= bound


def test_a_bound_that_half_precision_rounds_is_found_in_the_output():
    x = torch.randn(4000).to(torch.bfloat16)
    rounded = torch.tensor(0.7).to(torch.bfloat16)
    x = x[x.abs() != rounded]
    y = F.hardtanh(x, -0.7, 0.7)
    result = activation_backward_from_output(torch.ones_like(y), y, None, "hardtanh", 0.7)
    assert torch.equal(result, (x.abs() < 0.7).to(x.dtype))


@pytest.mark.parametrize("kind", SIDED)
def test_plain_torch_and_c_agree(kind, monkeypatch):
    x = normal(torch.float32)[:5003] * 3
    gradient = torch.randn_like(x)
    fast, bits = ours(x, kind, gradient), activation_side(x, kind)
    monkeypatch.setattr(inverses, "native", lambda *_: None)
    monkeypatch.setattr(inverses, "_CHUNK", 1000)
    assert torch.equal(activation_side(x, kind), bits)
    torch.testing.assert_close(ours(x, kind, gradient), fast, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", SIDED)
def test_a_bit_is_kept_for_each_element_whatever_the_shape(kind):
    for size in ((), (0,), (1,), (7,), (8,), (3, 5, 7), (257,), (256, 3)):
        x = torch.randn(size)
        assert activation_side(x, kind).shape == (-(-x.numel() // 8),)
        assert (errors(x, kind).abs() <= allowed(x, kind)).all()


@pytest.mark.parametrize("kind", ["gelu", "hardswish", "tanh"])
def test_tensors_that_lie_in_another_order_are_taken_as_they_lie(kind):
    x = torch.randn(2, 5, 7, 3).to(memory_format=torch.channels_last)
    for gradient in (torch.randn(2, 5, 7, 3), torch.randn_like(x), torch.randn(5, 1, 1).expand_as(x)):
        result = ours(x, kind, gradient)
        assert result.stride() == x.stride()
        off = (result - torchs(x.double(), kind, gradient.double())).abs()
        assert (off <= gradient.abs() * (1e-6 if kind == "tanh" else allowed(x, kind))).all()


def test_a_gradient_of_another_type_keeps_it():
    x = torch.randn(1000, dtype=torch.bfloat16)
    result = ours(x, "gelu", torch.ones(1000))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torchs(x.float(), "gelu"), rtol=0, atol=3e-2)


class Activation(torch.autograd.Function):
    """An activation that keeps its output and, where there is need, a bit for each element."""

    @staticmethod
    def forward(ctx, x, kind):
        y, ctx.kind = FUNCTIONS[kind](x), kind
        ctx.save_for_backward(y, *(() if kind in DIRECT else (activation_side(x, kind),)))
        return y

    @staticmethod
    def backward(ctx, *gradients):
        y, side = (*ctx.saved_tensors, None)[:2]
        parameter = PARAMETERS.get(ctx.kind, 0.0)
        return activation_backward_from_output(gradients[0], y, side, ctx.kind, parameter), None


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_the_gradient_is_that_of_the_function(kind):
    # none of them next to a corner, where finite differences are of no use
    x = torch.linspace(-5.05, 7.05, 97, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Activation.apply(x, kind), x)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_shapes_are_known_without_data(kind):
    x = torch.randn(3, 4, 5)
    if kind in SIDED:
        torch.library.opcheck(activation_side, (x, kind))
    arguments = (torch.randn(3, 4, 5), FUNCTIONS[kind](x), side_of(x, kind), kind, PARAMETERS.get(kind, 0.0))
    torch.library.opcheck(activation_backward_from_output, arguments)


def test_what_makes_no_sense_is_refused():
    x = torch.randn(5)
    with pytest.raises(ValueError, match="no minimum"):
        activation_side(x, "relu")
    with pytest.raises(ValueError, match="attains each of its outputs twice"):
        activation_backward_from_output(x, x, None, "gelu", 0.0)
    with pytest.raises(ValueError, match="no activation of the name"):
        activation_backward_from_output(x, x, None, "sine", 0.0)
