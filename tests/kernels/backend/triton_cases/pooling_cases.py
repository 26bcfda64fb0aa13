"""Max pooling by Triton: the bits of torch's."""

import pytest
import torch
from lowtide.kernels.pooling import pooling
from lowtide.kernels.pooling.pooling import bits_of_code, max_pool2d_backward_from_codes, max_pool2d_codes
from torch import Tensor
from triton_device import DEVICE, assert_same_bits, randn

aten = torch.ops.aten

WINDOWS = [
    ([2, 2], [2, 2], [0, 0], [1, 1], False),
    ([3, 3], [2, 2], [1, 1], [1, 1], False),
    ([3, 2], [2, 1], [1, 0], [2, 3], True),
    ([5, 3], [1, 2], [2, 1], [1, 1], True),
    ([1, 1], [1, 1], [0, 0], [1, 1], False),
    ([1, 7], [3, 3], [0, 3], [1, 1], True),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def spoiled(x: Tensor) -> Tensor:
    """x with ties, infinities and NaN in it."""
    x = x.mul(2).round()
    x.view(-1)[::7] = -torch.inf
    x.view(-1)[3::31] = torch.nan
    x.view(-1)[5::29] = torch.inf
    return x


def assert_pooled_as_by_torch(x: Tensor, window) -> None:
    """Check that y and the gradient of x are those of torch, which on a GPU adds 16-bit gradients in single
    precision.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    before = x.to(wide).contiguous()
    y, indices = aten.max_pool2d_with_indices(before, *window)
    gradient = randn(*y.shape, dtype=x.dtype)
    expected = aten.max_pool2d_with_indices_backward(gradient.to(wide), before, *window, indices).to(x.dtype)
    ours, codes = max_pool2d_codes(x, *window)
    assert ours.stride() == aten.max_pool2d_with_indices(x, *window)[0].stride()
    assert_same_bits(ours, y.to(x.dtype))
    assert codes.shape == (-(-bits_of_code(window[0]) * y.numel() // 8),)
    arguments = (list(x.shape), *window, not ours.is_contiguous())
    result = max_pool2d_backward_from_codes(torch.empty_like(ours).copy_(gradient), codes, *arguments)
    assert_same_bits(result, expected)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pooling_gives_the_bits_of_torch_with_ties_infinities_and_nan(window, layout):
    assert_pooled_as_by_torch(spoiled(randn(1, 3, 11, 10)).contiguous(memory_format=layout), window)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_pooling_gives_the_bits_of_torch_in_other_types(dtype):
    assert_pooled_as_by_torch(randn(1, 3, 10, 9, dtype=dtype), WINDOWS[1])


@pytest.mark.usefixtures("either_width")
def test_pooling_takes_planes_smaller_than_a_window_none_and_strided_ones():
    for size in ((2, 3, 2, 1), (1, 2, 1, 5)):
        assert_pooled_as_by_torch(randn(*size), ([3, 3], [1, 1], [1, 1], [1, 1], False))
    assert_pooled_as_by_torch(randn(5, 9, 7), WINDOWS[1])
    assert_pooled_as_by_torch(randn(0, 5, 9, 7), WINDOWS[1])
    assert_pooled_as_by_torch(randn(4, 4, 9, 14)[:, ::2, :, ::2], WINDOWS[1])


@pytest.mark.parametrize("value", [-torch.inf, 0.0])
def test_where_all_are_equal_the_place_is_the_one_that_torch_chooses(value):
    assert_pooled_as_by_torch(torch.full((1, 3, 9, 9), value, device=DEVICE), WINDOWS[1])


@pytest.mark.parametrize("window", WINDOWS[:2], ids=str)
def test_the_codes_are_those_of_the_plain_version_and_can_be_read_by_it(window, monkeypatch):
    x = randn(1, 3, 9, 10)
    y, codes = max_pool2d_codes(x, *window)
    arguments = (torch.ones_like(y), codes, list(x.shape), *window, not y.is_contiguous())
    result = max_pool2d_backward_from_codes(*arguments)
    monkeypatch.setattr(pooling, "triton_version", lambda *_: None)
    monkeypatch.setattr(pooling, "native", lambda *_: None)
    assert torch.equal(max_pool2d_codes(x, *window)[1], codes)
    assert torch.equal(max_pool2d_backward_from_codes(*arguments), result)


def test_windows_of_more_places_than_eight_bits_tell_apart_are_left_to_the_plain_version(launches):
    assert_pooled_as_by_torch(randn(1, 2, 20, 20), ([17, 17], [2, 2], [0, 0], [1, 1], False))
    assert not launches
    launches.append("none was needed")


def test_codes_that_no_window_has_and_windows_outside_of_the_input_have_no_gradient():
    codes = torch.full((100,), 255, dtype=torch.uint8, device=DEVICE)
    arguments = ([2, 4, 9, 9], *WINDOWS[1], False)
    assert not max_pool2d_backward_from_codes(torch.ones(2, 4, 5, 5, device=DEVICE), codes, *arguments).any()
    outside = ([2, 2], [1, 1], [1, 1], [2, 2], False)
    y, codes = max_pool2d_codes(randn(1, 1, 1, 1), *outside)
    assert y.item() == -torch.inf
    assert not max_pool2d_backward_from_codes(torch.ones_like(y), codes, [1, 1, 1, 1], *outside, False).any()
