"""Codes of a few bits by Triton: the bits of the plain versions, those drawn at random too."""

import pytest
import torch
from lowtide.kernels.exact_codes.threshold_bits import Thresholds, pack_inside, unpack_inside
from lowtide.kernels.exact_codes.threshold_classes import pack_classes, unpack_classes
from lowtide.kernels.few_bit import few_bit
from lowtide.kernels.few_bit.few_bit import decode_levels, encode_by_borders, multiply_levels
from lowtide.kernels.packing.bits import pack_plainly
from lowtide.kernels.packing.packed_codes import pack_codes, pack_codes_plainly, unpack_codes
from lowtide.kernels.quantize import plain_groups
from lowtide.kernels.quantize.groups import decode_groups, encode_groups
from torch import Tensor
from triton_device import DEVICE, assert_same_bits, randn

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SPECIAL = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38]


def special(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of a normal distribution behind special ones."""
    x = randn(count, dtype=dtype)
    x[: len(SPECIAL)] = torch.tensor(SPECIAL)[:count].to(DEVICE, dtype)
    return x


@pytest.mark.usefixtures("either_width")
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_pack_to_the_bytes_of_the_plain_version_and_come_back(bits):
    for count in (1, 7, 9, 2048, 2053):
        codes = torch.randint(256, (count,), dtype=torch.uint8).to(DEVICE)
        packed = pack_codes(codes, bits)
        assert torch.equal(packed, pack_codes_plainly(codes, bits))
        assert torch.equal(unpack_codes(packed, bits, count), codes & 2**bits - 1)
    last = pack_codes(codes[:3], bits)  # bits behind the last code are zeros, as the plain version leaves them
    assert sum(int(byte) << 8 * i for i, byte in enumerate(last)) < 2 ** (3 * bits)


@pytest.mark.usefixtures("either_width")
@pytest.mark.parametrize(
    ("border_count", "bits", "dtype"),
    [
        (0, 1, torch.float32),
        (1, 1, torch.bfloat16),
        (3, 2, torch.float64),
        (6, 3, torch.float32),
        (32, 4, torch.float16),
        (33, 5, torch.float32),
        (62, 6, torch.float64),
        (100, 7, torch.bfloat16),
        (300, 8, torch.float32),
    ],
    ids=str,
)
def test_intervals_are_those_of_the_plain_version(border_count, bits, dtype):
    x, wide = special(2053, dtype), torch.promote_types(dtype, torch.float32)
    borders = torch.linspace(-2, 2, border_count + 2, dtype=wide)[1:-1]
    x[20 : 20 + border_count] = borders.to(DEVICE, dtype)  # a border belongs to the interval above
    numbers = [7 * place % 2**bits for place in range(border_count + 1)]
    code = encode_by_borders(x, borders.tolist(), numbers, bits)
    assert torch.equal(code, few_bit.encode_plainly(x, borders, torch.tensor(numbers), bits))


@pytest.mark.usefixtures("either_width")
@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_and_products_with_them_are_those_of_the_plain_version(bits):
    dtype = FLOATS[bits % 4]
    x = special(2053, dtype)[1:]  # does not begin at a whole word
    code = pack_codes(torch.randint(2**bits, x.shape, dtype=torch.uint8).to(DEVICE), bits)
    levels = torch.linspace(-0.1, 1.1, 2**bits - (bits > 1), dtype=torch.float64)  # the last code has none: NaN
    for_each = torch.cat([levels, torch.full((2**bits - len(levels),), torch.nan)])
    numbers = unpack_codes(code, bits, len(x)).int()
    decoded = decode_levels(code, levels.tolist(), bits, [len(x)], [1], dtype)
    assert_same_bits(decoded, for_each.to(DEVICE, dtype)[numbers])
    table = for_each.to(torch.promote_types(dtype, torch.float32))
    assert_same_bits(multiply_levels(x, code, levels.tolist(), bits), few_bit.multiply_plainly(x, code, table, bits))


@pytest.mark.usefixtures("either_width")
@pytest.mark.parametrize(
    ("thresholds", "dtype"),
    [
        (Thresholds(high=0.0), torch.float32),
        (Thresholds(low=-0.5), torch.float16),
        (Thresholds(-0.5, 1.5, True, True), torch.bfloat16),
        (Thresholds(-0.5, 1.5, nan_inside=True), torch.float32),
        (Thresholds(0.0, 0.0), torch.float64),
    ],
    ids=str,
)
def test_what_is_compared_with_thresholds_is_kept_as_by_the_plain_version(thresholds, dtype):
    x = special(2053, dtype)
    x[20:23] = torch.tensor([-0.5, 0.0, 1.5])
    low, high = thresholds.low, thresholds.high
    bits, inside = pack_inside(x, *vars(thresholds).values()), thresholds.contain(x)
    assert torch.equal(bits, pack_plainly(inside))
    layout, expected = ([len(x)], [1], dtype), torch.where(inside, 3.0, -0.0)
    assert_same_bits(unpack_inside(bits, 3.0, -0.0, *layout), expected.to(dtype))
    with_nan = pack_inside(x, low, high, thresholds.is_open, thresholds.nan_inside, True)
    assert torch.equal(with_nan, torch.cat([bits, pack_plainly(x.isnan())]))
    assert_same_bits(unpack_inside(with_nan, 3.0, -0.0, *layout), expected.to(dtype).masked_fill(x.isnan(), torch.nan))
    planes = pack_classes(x, low, high)
    assert torch.equal(planes, torch.cat([pack_plainly(x >= low), pack_plainly(x <= high)]))
    expected = torch.where(x < low, -7.0, torch.where(x > high, 8.0, torch.where(x.isnan(), torch.nan, 0.5)))
    assert_same_bits(unpack_classes(planes, -7.0, 0.5, 8.0, *layout), expected.to(dtype))


def assert_grouped_as_plainly(x: Tensor, bits: int, group: int, *options: bool | int) -> Tensor:
    """Check that a code and its decoded tensor are those of the plain version; returns the latter.

    options: those of encoding.
    """
    code = encode_groups(x, bits, group, *options)
    assert torch.equal(code, plain_groups.encode_plainly(x, bits, group, *options))
    decoded, expected = (torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE) for _ in range(2))
    decoded = decode_groups(code, bits, group, *options, list(x.shape), list(x.stride()), x.dtype)
    plain_groups.decode_plainly(code, expected.as_strided((x.numel(),), (1,)), bits, group, *options)
    assert_same_bits(decoded, expected)
    return decoded


@pytest.mark.usefixtures("either_width")
@pytest.mark.parametrize(
    ("bits", "group", "count", "dtype"),
    [
        (1, 8, 1, torch.float32),
        (2, 256, 255, torch.float32),
        (3, 64, 256, torch.float64),
        (4, 256, 2 * 2048 + 37, torch.float32),
        (5, 16, 2047, torch.bfloat16),
        (6, 2048, 2303, torch.float16),
        (7, 32, 513, torch.float32),
        (8, 4096, 4096 + 7, torch.bfloat16),
    ],
    ids=str,
)
def test_groups_are_coded_as_by_the_plain_version(bits, group, count, dtype):
    x = (randn(count, dtype=torch.float64) * torch.logspace(-3, 3, count, dtype=torch.float64).to(DEVICE)).to(dtype)
    on_levels = x.masked_fill(torch.arange(count).to(DEVICE) % 4 > 0, 0)  # groups that are decoded without dither
    for stochastic, hadamard in ((False, False), (True, False), (False, True), (True, True)):
        assert_grouped_as_plainly(x, bits, group, stochastic, hadamard, 7)
        assert_grouped_as_plainly(on_levels, bits, group, stochastic, hadamard, 7)


def test_groups_that_are_equal_tiny_or_cannot_be_coded_are_those_of_the_plain_version():
    x = randn(12, 8)
    x[1], x[2], x[3], x[4, 0], x[5, 1], x[6, 2] = 0.0, -0.0, -1.3, torch.inf, -torch.inf, torch.nan
    x[7, 0], x[7, 1] = -3e38, 3e38  # levels overflow
    x[8] = torch.arange(8) * 1e-42
    x[11], x[11, 0] = 0.0, 1e-45  # a seventh of which is nothing
    x[9, 3], x[10] = -1e-42, 3.0 + torch.arange(8).to(DEVICE) * 2.0**-22
    for options in ((False, False, 1), (True, False, 2), (True, True, 3)):
        decoded = assert_grouped_as_plainly(x, 3, 8, *options)
        if not options[1]:
            assert decoded.isnan().any(1).nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_codes_lie_in_the_order_of_memory_and_take_tensors_that_require_gradients():
    x = randn(3, 5, 7).transpose(0, 2).requires_grad_()
    code = encode_by_borders(x, [0.0], [0, 1], 1)
    assert_grouped_as_plainly(x, 4, 8, True, True, 5)
    assert not encode_groups(x, 4, 8, True, True, 5).requires_grad
    assert not code.requires_grad
    assert torch.equal(decode_levels(code, [0.0, 1.0], 1, [7, 5, 3], list(x.stride()), x.dtype), (x >= 0).float())
    product = multiply_levels(x, code, [0.0, 1.0], 1)
    assert product.stride() == x.stride() and torch.equal(product, x.detach().relu())


def test_nothing_has_an_empty_code(launches):
    x = randn(0, 4)
    code = encode_by_borders(x, [0.0], [0, 1], 1)
    assert code.shape == pack_inside(x, 0.0, 1.0, True, True).shape == (0,)
    assert decode_levels(code, [0.0, 1.0], 1, [0, 4], [4, 1], torch.float32).shape == (0, 4)
    assert multiply_levels(x, code, [0.0, 1.0], 1).shape == (0, 4)
    assert assert_grouped_as_plainly(x, 4, 8, True, True, 5).shape == (0, 4)
    assert unpack_classes(pack_classes(x, 0.0, 1.0), 0.0, 1.0, 2.0, [0, 4], [4, 1], x.dtype).shape == (0, 4)
    assert not launches
    launches.append("none was needed")
