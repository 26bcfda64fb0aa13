"""Gradients of normalizations by Triton."""

import pytest
import torch
from lowtide.kernels.norms import BIAS, INPUT, WEIGHT
from triton_device import distance, randn


def normalized(size: tuple[int, ...], columns: int, centred: bool, dtype: torch.dtype):
    """A gradient, x̂ and r of those sizes, and weight and bias, all from float64."""
    x, gradient, weight, bias = (randn(*each, dtype=torch.float64) for each in (size, size, (columns,), (columns,)))
    x = 3 * x + 1
    x = x - x.mean(-1, keepdim=True) if centred else x
    r = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return [tensor.to(dtype) for tensor in (gradient, x * r, r, weight, bias)]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [(34, 36), (3, 5, 7), (1, 1500)])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 4e-3)], ids=str
)
def test_gradients_of_normalization_are_those_of_the_plain_version(size, dtype, limit, centred):
    gradient, x, r, weight, bias = normalized(size, size[-1], centred, dtype)
    summed = tuple(range(len(size) - 1))
    g, y, wide = gradient.double(), x.double(), weight.double()
    along = (g * wide * y).mean(-1, keepdim=True)
    plain = (g * wide).mean(-1, keepdim=True) if centred else 0
    expected = (g * wide - plain - y * along) * r.double(), (g * y).sum(summed), g.sum(summed)
    told = (gradient, x, r, weight, centred)
    found = torch.ops.lowtide.layer_norm_backward_from_normalized(*told, INPUT | WEIGHT | BIAS)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype and distance(one, other) <= limit
    alone = torch.ops.lowtide.layer_norm_backward_from_normalized(*told, INPUT)
    assert torch.equal(alone[0], found[0]) and not alone[1].numel()
    if dtype == torch.float32:
        away = weight.sign() * (weight.abs() + 0.5)
        output = (y * away.double() + bias.double()).float()
        from_output = (gradient, output, r, away, bias, centred, WEIGHT | BIAS)
        found = torch.ops.lowtide.layer_norm_backward_from_output(*from_output)
        assert all(distance(one, other) <= limit for one, other in zip(found[1:], expected[1:], strict=True))
