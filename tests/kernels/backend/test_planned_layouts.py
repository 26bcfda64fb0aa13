"""Kernels that read in the order of memory put operands into the planned order where they arrive in another one."""

import warnings

import pytest
import torch
from lowtide.kernels.backend.planned_layouts import LayoutWarning, laid_out
from lowtide.kernels.exact_codes.narrow_integers import NARROW_CODECS
from lowtide.kernels.exact_codes.threshold_bits import pack_inside
from lowtide.kernels.exact_codes.threshold_classes import pack_classes
from lowtide.kernels.few_bit.few_bit import decode_levels, encode_by_borders, multiply_levels
from lowtide.kernels.packing.bits import multiply_bits, pack_bits
from lowtide.kernels.pooling.pooling import max_pool2d_backward_from_codes, max_pool2d_codes
from lowtide.kernels.quantize.groups import encode_groups
from lowtide.kernels.rows.sampling import sample_rows
from lowtide.kernels.rows.sketches import sketch
from torch import nn

SIZE, STRIDE = (12, 40), [40, 1]


def numbers(seed: int = 0) -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


ARRIVING = {
    "turned": lambda x: x.t().contiguous().t(),
    "with gaps": lambda x: torch.stack([x, x], -1)[..., 0],
}
# What makes codes in the order of memory, of a tensor that is planned to lie with a stride.
PACKING = {
    "pack_bits": pack_bits,
    "encode_by_borders": lambda x, stride: encode_by_borders(x, [-0.5, 0.5], [0, 1, 2], 2, stride),
    "narrow_to_int8": lambda x, stride: NARROW_CODECS[torch.int8].encode(x, stride=stride),
    "pack_inside": lambda x, stride: pack_inside(x, 0.0, 1.0, True, True, stride=stride),
    "pack_classes": lambda x, stride: pack_classes(x, 0.0, 1.0, stride),
    "encode_groups": lambda x, stride: encode_groups(x, 4, 16, True, True, 5, stride),
    "sample_rows": lambda x, stride: sample_rows(x, "norms", 4, 3, stride=stride),
    "sketch": lambda x, stride: sketch(x, "rademacher", 4, 3, stride=stride),
}
OF_OTHER_TYPES = {"pack_bits": torch.bool, "narrow_to_int8": torch.int64}


@pytest.mark.parametrize("arriving", ["turned", "with gaps"])
@pytest.mark.parametrize("name", PACKING)
def test_codes_are_in_the_planned_order(name, arriving):
    x, pack = numbers().mul(3).round().to(OF_OTHER_TYPES.get(name, torch.float32)), PACKING[name]
    planned = pack(x, None)
    rearranged = ARRIVING[arriving](x)
    assert rearranged.stride() != x.stride() and torch.equal(rearranged, x)
    with pytest.warns(LayoutWarning, match=r"has strides .* where the plan expects \(40, 1\)"):
        assert torch.equal(pack(rearranged, STRIDE), planned)


def test_a_mask_in_bits_multiplies_the_elements_that_it_was_drawn_for():
    x, mask = numbers(), numbers(1) > 0
    bits, expected = pack_bits(mask), x * mask * 1.25
    for arriving in ("turned", "with gaps"):
        with pytest.warns(LayoutWarning):
            product = multiply_bits(ARRIVING[arriving](x), bits, 1.25, STRIDE)
        assert torch.equal(product, expected)


def test_its_gradient_is_masked_in_the_planned_order_too():
    x, bits = numbers().requires_grad_(), pack_bits(numbers(1) > 0)
    with pytest.warns(LayoutWarning):
        product = multiply_bits(ARRIVING["turned"](x), bits, 2.0, STRIDE)
    product.sum().backward()
    assert torch.equal(x.grad, (numbers(1) > 0) * 2.0)


def test_levels_multiply_the_elements_that_they_were_made_of():
    x, gradient, levels = numbers(), numbers(1), [-1.0, 0.25, 3.0]
    code = encode_by_borders(x, [-0.5, 0.5], [0, 1, 2], 2, STRIDE)
    slopes = decode_levels(code, levels, 2, list(SIZE), STRIDE, torch.float32)
    with pytest.warns(LayoutWarning):
        product = multiply_levels(ARRIVING["turned"](gradient), code, levels, 2, STRIDE)
    assert torch.equal(product, gradient * slopes)


@pytest.mark.parametrize("channels_last", [True, False])
def test_pooling_orders_its_codes_as_planned(channels_last):
    window = [2, 2], [2, 2], [0, 0], [1, 1], False
    lies, unplanned_format = (torch.channels_last, torch.contiguous_format)[:: 1 if channels_last else -1]
    x = torch.randn(2, 4, 8, 8).to(memory_format=lies)
    y, codes = max_pool2d_codes(x, *window, channels_last)
    with pytest.warns(LayoutWarning):
        unplanned, same = max_pool2d_codes(x.to(memory_format=unplanned_format), *window, channels_last)
    assert torch.equal(y, unplanned) and torch.equal(codes, same) and y.stride() == unplanned.stride()
    gradient, leaf = torch.randn_like(y).to(memory_format=unplanned_format), x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.max_pool2d(leaf, 2), leaf, gradient)
    assert torch.equal(max_pool2d_backward_from_codes(gradient, codes, list(x.shape), *window, channels_last), expected)


def test_what_lies_as_planned_is_taken_as_it_is():
    x = numbers()
    row = x[:1].as_strided((1, 40), (7, 1))  # along a dimension of size 1 nothing lies anywhere
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert laid_out(x, STRIDE) is x and laid_out(x, None) is x and laid_out(row, STRIDE) is row
        assert laid_out(x[:0], [1, 1]).shape == (0, 40)
