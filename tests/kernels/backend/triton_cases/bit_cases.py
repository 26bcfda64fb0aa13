"""Truth values in bits, and products with them, by Triton."""

import pytest
import torch
from lowtide.kernels.packing.bits import multiply_bits, multiply_plainly, pack_bits, pack_plainly, unpack_bits
from torch import Tensor
from triton_device import DEVICE, assert_same_bits, randn


def truths_of(count: int) -> Tensor:
    return (torch.rand(count) < 0.5).to(DEVICE)


@pytest.mark.usefixtures("either_width")
@pytest.mark.parametrize("count", [1, 7, 8, 9, 2047, 2048, 2049, 5003])
def test_truth_values_pack_to_the_bits_of_the_plain_version_and_come_back(count):
    truths = truths_of(count)
    packed = pack_bits(truths)
    assert torch.equal(packed, pack_plainly(truths))
    assert torch.equal(unpack_bits(packed, [count], [1]), truths)
    assert torch.equal(pack_bits(truths[1:]), pack_plainly(truths[1:]))  # does not begin at a whole word


@pytest.mark.usefixtures("either_width")
@pytest.mark.parametrize("scale", [1 / 0.9, 2.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_product_with_bits_is_that_of_the_plain_version_to_the_bit(dtype, scale):
    x = randn(7, 333, dtype=dtype)
    x[0, :6] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0, 0.0, -1.0])
    x[1, :2] = torch.finfo(dtype).smallest_normal / 4
    packed = pack_bits(truths_of(x.numel()))
    assert_same_bits(multiply_bits(x, packed, scale), multiply_plainly(x, packed, scale))


def test_bits_lie_in_the_order_of_memory():
    x = randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    truths = torch.empty_like(x, dtype=torch.bool).copy_(x > 0)
    packed = pack_bits(truths)
    assert torch.equal(unpack_bits(packed, list(x.shape), list(x.stride())), truths)
    product = multiply_bits(x, packed, 1.0)
    assert product.stride() == x.stride() and torch.equal(product, x * truths)


def test_nothing_packs_to_nothing(launches):
    assert pack_bits(torch.empty(0, dtype=torch.bool, device=DEVICE)).numel() == 0
    assert unpack_bits(torch.empty(0, dtype=torch.uint8, device=DEVICE), [0, 3], [3, 1]).shape == (0, 3)
    assert not launches
    launches.append("none was needed")
