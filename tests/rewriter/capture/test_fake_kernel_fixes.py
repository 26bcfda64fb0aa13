"""Results of fake kernels after their corrections, compared with the results of real kernels."""

from itertools import product

import lowtide
import pytest
import torch
from lowtide.rewriter.capture.eager.fake_kernel_fixes import as_eager_makes_it
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

aten = torch.ops.aten
BACKWARDS = {
    aten.threshold_backward.default: lambda g, x: (g, x, 0),
    aten.hardtanh_backward.default: lambda g, x: (g, x, -1, 1),
    aten.leaky_relu_backward.default: lambda g, x: (g, x, 0.1, False),
    aten.rrelu_with_noise_backward.default: lambda g, x: (g, x, x, 0.1, 0.3, False, False),
    aten.elu_backward.default: lambda g, x: (g, 1, 1, 1, False, x),
    aten.hardswish_backward.default: lambda g, x: (g, x),
    aten.hardsigmoid_backward.default: lambda g, x: (g, x),
    aten.softplus_backward.default: lambda g, x: (g, x, 1, 20),
    aten.gelu_backward.default: lambda g, x: (g, x),
    aten.silu_backward.default: lambda g, x: (g, x),
    aten.mish_backward.default: lambda g, x: (g, x),
    aten.sigmoid_backward.default: lambda g, x: (g, x),
    aten.tanh_backward.default: lambda g, x: (g, x),
    aten.hardshrink_backward.default: lambda g, x: (g, x, 0.5),
    aten.softshrink_backward.default: lambda g, x: (g, x, 0.5),
    aten.logit_backward.default: lambda g, x: (g, x, None),
    aten.mse_loss_backward.default: lambda g, x: (g, x, g, 1),
    aten.smooth_l1_loss_backward.default: lambda g, x: (g, x, g, 1, 1.0),
}
LAYOUTS = {
    "contiguous": lambda: torch.rand(2, 6, 5, 4),
    "channels last": lambda: torch.rand(2, 6, 5, 4).to(memory_format=torch.channels_last),
    "one number": lambda: torch.rand(()).expand(2, 6, 5, 4),
    "turned": lambda: torch.rand(6, 2, 4, 5).permute(1, 0, 3, 2),
}


@pytest.mark.parametrize("operation", BACKWARDS, ids=str)
def test_derivatives_of_operands_laid_out_in_any_way_are_predicted_as_they_are(operation):
    for gradient, operand in product(LAYOUTS.values(), repeat=2):
        real = operation(*BACKWARDS[operation](gradient(), operand()))
        with FakeTensorMode():
            arguments = BACKWARDS[operation](gradient(), operand())
            predicted = as_eager_makes_it(operation, arguments, operation(*arguments))
        assert (predicted.shape, predicted.stride(), predicted.dtype) == (real.shape, real.stride(), real.dtype)


NUMBERS = torch.rand(6)
NORMALIZATIONS = {
    aten._native_batch_norm_legit_functional.default: lambda _, x: (x, *[NUMBERS] * 4, True, 0.1, 1e-5),
    aten.native_batch_norm.default: lambda _, x: (x, *[NUMBERS] * 4, True, 0.1, 1e-5),
    aten.native_batch_norm_backward.default: lambda g, x: (g, x, *[NUMBERS] * 5, True, 1e-5, [True] * 3),
    aten.native_group_norm_backward.default: lambda g, x: (
        *(g, x, torch.rand(2, 2), torch.rand(2, 2), NUMBERS),
        *(2, 6, 20, 2, [True] * 3),
    ),
}


@pytest.mark.parametrize("operation", NORMALIZATIONS, ids=str)
def test_normalizations_of_images_are_predicted_laid_out_as_they_are(operation):
    sliced = {"some of the channels": lambda: torch.rand(2, 8, 5, 4).to(memory_format=torch.channels_last)[:, 1:7]}
    for gradient, operand in product((LAYOUTS | sliced).values(), repeat=2):
        arguments = NORMALIZATIONS[operation](gradient(), operand())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = [mode.from_tensor(tensor) if isinstance(tensor, torch.Tensor) else tensor for tensor in arguments]
            try:
                made = operation(*fake)
            except ValueError:  # group_norm's autograd makes such gradients dense before
                assert operation is aten.native_group_norm_backward.default
                continue
            predicted = as_eager_makes_it(operation, tuple(fake), made)
        real = operation(*arguments)
        assert [tensor.stride() for tensor in predicted] == [tensor.stride() for tensor in real]


class Pooled(nn.Module):
    """Images with channels last, whose gradient comes from a mean: contiguous."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Mish()) for _ in range(3))
        )

    def forward(self, x):
        return self.layers(x).mean((2, 3)).square().sum()


class Residual(nn.Module):
    """Images with channels last, whose gradient comes from a sum: of one number, so contiguous."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = x + nn.functional.hardtanh(layer(x), inplace=True)
        return x.square().mean()


@pytest.mark.parametrize("network", [Residual, Pooled])
@pytest.mark.parametrize("budget", ["100%", "90%"])
def test_peaks_are_predicted_where_gradients_are_laid_out_unlike_activations(network, budget):
    torch.manual_seed(0)
    model = network().to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 24, 24).to(memory_format=torch.channels_last)
    report = lowtide.verify(model, budget, (x,), steps=1, costs="flops")
    assert report.ok
    assert report.measured_peak_bytes == report.plan.peak_bytes
