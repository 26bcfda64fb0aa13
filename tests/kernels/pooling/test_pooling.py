"""Max pooling from codes of a few bits gives torch's own numbers, forward and backward, to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lowtide.kernels.pooling import pooling
from lowtide.kernels.pooling.pooling import bits_of_code, max_pool2d_backward_from_codes, max_pool2d_codes
from torch import Tensor

aten = torch.ops.aten
PLAIN = ([2, 2], [2, 2], [0, 0], [1, 1], False)
WINDOWS = [
    PLAIN,
    ([3, 3], [2, 2], [1, 1], [1, 1], False),
    ([3, 3], [1, 1], [1, 1], [1, 1], True),
    ([3, 2], [2, 1], [1, 0], [2, 3], True),
    ([2, 3], [], [1, 1], [1, 2], False),
    ([5, 5], [1, 2], [2, 2], [1, 1], True),
    ([1, 1], [1, 1], [0, 0], [1, 1], False),
    ([1, 7], [3, 3], [0, 3], [1, 1], True),
]


def torch_pair(x: Tensor, gradient_of, window) -> tuple[Tensor, Tensor, Tensor]:
    """Torch's y, a gradient of y, and the gradient of x that torch's backward makes of it."""
    y, indices = aten.max_pool2d_with_indices(x, *window)
    gradient = gradient_of(y)
    return y, gradient, aten.max_pool2d_with_indices_backward(gradient, x, *window, indices)


def strides(x: Tensor) -> list[int]:
    """The strides that matter: not those of a dimension of one element."""
    return [stride for stride, length in zip(x.stride(), x.shape, strict=True) if length > 1]


def assert_as_torch(x: Tensor, window, gradient_of=torch.randn_like) -> None:
    """Check that y and the gradient of x are torch's, laid out as torch lays them out, and that the codes have their
    size.
    """
    y, gradient, expected = torch_pair(x, gradient_of, window)
    ours, codes = max_pool2d_codes(x, *window)
    assert ours.stride() == y.stride()
    assert torch.equal(ours.nan_to_num(7e7), y.nan_to_num(7e7))
    assert codes.dtype == torch.uint8
    assert codes.shape == (-(-bits_of_code(window[0]) * y.numel() // 8),)
    result = max_pool2d_backward_from_codes(gradient, codes, list(x.shape), *window, not expected.is_contiguous())
    assert torch.equal(result, expected)
    assert strides(result) == strides(expected)


def spoiled(x: Tensor) -> Tensor:
    """x with ties, infinities and NaN in it."""
    x = x.mul(2).round()
    x.view(-1)[::7] = -torch.inf
    x.view(-1)[3::31] = torch.nan
    x.view(-1)[5::29] = torch.inf
    return x


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradient_are_torchs_to_the_bit(window, dtype, lies):
    for size in ((3, 5, 9, 11), (1, 3, 7, 8), (2, 1, 8, 8)):
        x = torch.randn(size, dtype=dtype).contiguous(memory_format=lies)
        assert_as_torch(x, window)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
def test_ties_infinities_and_nan_choose_the_place_that_torch_chooses(window, lies):
    assert_as_torch(spoiled(torch.randn(2, 19, 13, 10)).contiguous(memory_format=lies), window)
    assert_as_torch(torch.full((2, 3, 9, 9), -torch.inf).contiguous(memory_format=lies), window)
    assert_as_torch(torch.full((2, 3, 9, 9), torch.nan).contiguous(memory_format=lies), window)
    assert_as_torch(torch.zeros(2, 3, 9, 9).contiguous(memory_format=lies), window)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_window_on_any_plane_is_as_in_torch(data):
    kernel = [data.draw(st.integers(1, 5)) for _ in range(2)]
    padding = [data.draw(st.integers(0, k // 2)) for k in kernel]
    dilation = [data.draw(st.integers(1, 3)) for _ in range(2)]
    stride = [data.draw(st.integers(1, 4)) for _ in range(2)]
    # planes into which the dilated windows fit, so that each has a place inside
    size = [data.draw(st.integers(d * (k - 1) + 1, d * (k - 1) + 9)) for k, d in zip(kernel, dilation, strict=True)]
    x = spoiled(torch.randn(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9)), *size))
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    assert_as_torch(x, (kernel, stride, padding, dilation, data.draw(st.booleans())))


def test_windows_wider_than_the_plane_are_as_in_torch():
    for size in ((2, 3, 1, 1), (2, 3, 2, 1), (1, 2, 1, 5)):
        assert_as_torch(torch.randn(size), ([3, 3], [1, 1], [1, 1], [1, 1], False))


def test_an_input_in_many_pieces_is_pooled_as_in_one(monkeypatch):
    for lies in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(11, 6, 9, 7).contiguous(memory_format=lies)
        for chunk in (1, 200, 5000):
            monkeypatch.setattr(pooling, "_CHUNK", chunk)
            assert_as_torch(x, WINDOWS[1])


def test_an_unbatched_an_empty_and_a_strided_input_are_pooled_as_in_torch():
    assert_as_torch(torch.randn(5, 9, 7), WINDOWS[1])
    assert_as_torch(torch.randn(0, 5, 9, 7), WINDOWS[1])
    assert_as_torch(torch.randn(0, 5, 9, 7).to(memory_format=torch.channels_last), WINDOWS[1])
    assert_as_torch(torch.randn(4, 10, 9, 14)[:, ::2, :, ::2], WINDOWS[1])
    assert_as_torch(torch.randn(4, 10, 9, 14).to(memory_format=torch.channels_last)[:, :, 1:], WINDOWS[1])


def test_a_gradient_that_lies_otherwise_than_the_output_gives_torchs_result():
    def broadcast(y: Tensor) -> Tensor:
        return torch.randn(y.shape[:2])[:, :, None, None].expand_as(y)

    def turned(y: Tensor) -> Tensor:
        return torch.randn(y.shape).to(memory_format=torch.channels_last)

    for lies in (torch.contiguous_format, torch.channels_last):
        for gradient_of in (broadcast, turned, lambda y: torch.randn(y.shape)):
            assert_as_torch(torch.randn(2, 5, 9, 7).contiguous(memory_format=lies), WINDOWS[1], gradient_of)


def test_a_window_wholly_outside_of_the_input_has_no_gradient():
    window = ([2, 2], [1, 1], [1, 1], [2, 2], False)
    x = torch.randn(1, 1, 1, 1)
    y, codes = max_pool2d_codes(x, *window)
    assert y.item() == -torch.inf
    result = max_pool2d_backward_from_codes(torch.ones_like(y), codes, [1, 1, 1, 1], *window, False)
    assert result.item() == 0


def test_two_bits_are_kept_for_each_window_of_two_by_two_and_four_for_three_by_three():
    x = torch.randn(2, 3, 16, 16)
    assert max_pool2d_codes(x, *PLAIN)[1].nbytes == 2 * 3 * 8 * 8 * 2 // 8
    assert max_pool2d_codes(x, *WINDOWS[1])[1].nbytes == 2 * 3 * 8 * 8 * 4 // 8


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
def test_plain_torch_and_c_give_the_same_bits(window, lies, monkeypatch):
    x = torch.randn(3, 5, 9, 11).contiguous(memory_format=lies)
    codes = max_pool2d_codes(x, *window)[1]
    monkeypatch.setattr(pooling, "native", lambda *_: None)
    assert torch.equal(max_pool2d_codes(x, *window)[1], codes)
    assert_as_torch(x, window)


def test_an_index_outside_of_its_window_is_encoded_as_some_place_of_it():
    starts = pooling.window_starts([2, 2], 8, [4, 4], [0, 0])
    distances = pooling.place_distances([2, 2], [1, 1], 8)
    indices = torch.tensor([0, 0, 63, 36])
    codes = pooling.encode_plainly(indices, starts, pooling.code_table(distances), 2, 1)
    decoded = pooling.decode_plainly(codes, starts, distances, 2, 1, 64, 4)
    assert decoded[[0, 3]].tolist() == [0, 36]
    assert all(place - start in distances for place, start in zip(decoded, starts, strict=True))


def test_what_torch_refuses_is_refused():
    with pytest.raises(RuntimeError, match="pad should be"):
        max_pool2d_codes(torch.randn(1, 1, 5, 5), [2, 2], [1, 1], [2, 2], [1, 1], False)
    with pytest.raises(RuntimeError, match="too small"):
        max_pool2d_codes(torch.randn(1, 1, 2, 2), [3, 3], [1, 1], [0, 0], [1, 1], False)


class Pooled(torch.autograd.Function):
    """Forward and backward of the pair of operations."""

    @staticmethod
    def forward(ctx, x, window):
        y, codes = max_pool2d_codes(x, *window)
        ctx.save_for_backward(codes)
        ctx.rest = (list(x.shape), *window, not y.is_contiguous())
        return y

    @staticmethod
    def backward(ctx, *gradients):
        return max_pool2d_backward_from_codes(gradients[0], *ctx.saved_tensors, *ctx.rest), None


@pytest.mark.parametrize("window", WINDOWS[:4], ids=str)
def test_the_gradient_is_that_of_the_function(window):
    x = torch.randperm(2 * 2 * 7 * 6).view(2, 2, 7, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Pooled.apply(x, window), x)


@pytest.mark.parametrize("lies", [torch.contiguous_format, torch.channels_last])
def test_shapes_are_known_without_data(lies):
    x = torch.randn(2, 5, 9, 7).contiguous(memory_format=lies)
    for window in WINDOWS[:4]:
        torch.library.opcheck(max_pool2d_codes, (x, *window))
        y, codes = max_pool2d_codes(x, *window)
        rest = ([2, 5, 9, 7], *window, not y.is_contiguous())
        torch.library.opcheck(max_pool2d_backward_from_codes, (torch.randn_like(y), codes, *rest))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_that_no_window_has_write_nothing_outside_of_the_result(layout, dtype):
    size, window = [2, 4, 9, 9], ([3, 3], [2, 2], [1, 1], [1, 1], False)
    gradient = torch.ones(2, 4, 5, 5, dtype=dtype).contiguous(memory_format=layout)
    codes = torch.full((100,), 255, dtype=torch.uint8)
    gradient = torch.ops.lowtide.max_pool2d_backward_from_codes(
        gradient, codes, size, *window, layout is torch.channels_last
    )
    assert gradient.shape == (2, 4, 9, 9) and not gradient.any()
