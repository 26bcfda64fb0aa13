"""A bit for each element instead of what backward compares with thresholds: torch's backward makes the same bits."""

from math import inf, nan

import pytest
import torch
from lowtide.kernels.exact_codes import threshold_bits
from lowtide.kernels.exact_codes.threshold_bits import Thresholds, pack_inside, threshold_codec, unpack_inside
from lowtide.kernels.exact_codes.threshold_classes import class_codec, pack_classes, unpack_classes

aten = torch.ops.aten
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
BACKWARDS = {
    "relu": (Thresholds(high=0.0), lambda g, x: aten.threshold_backward(g, x, 0)),
    "threshold": (Thresholds(high=0.1), lambda g, x: aten.threshold_backward(g, x, 0.1)),
    "relu6": (Thresholds(0.0, 6.0, True, True, True), lambda g, x: aten.hardtanh_backward(g, x, 0.0, 6.0)),
    "hardtanh": (Thresholds(-0.3, inf, True, True, True), lambda g, x: aten.hardtanh_backward(g, x, -0.3, inf)),
    "hardsigmoid": (Thresholds(-3.0, 3.0, True), aten.hardsigmoid_backward),
    "hardshrink": (Thresholds(-0.5, 0.5, nan_varies=True), lambda g, x: aten.hardshrink_backward(g, x, 0.5)),
    "softshrink": (Thresholds(-0.0, 0.0, nan_varies=True), lambda g, x: aten.softshrink_backward(g, x, 0.0)),
    "leaky": (Thresholds(high=0.0, nan_inside=True), lambda g, x: aten.leaky_relu_backward(g, x, 0.01, False)),
    "leaky, output": (Thresholds(high=0.0, nan_inside=True), lambda g, x: aten.leaky_relu_backward(g, x, 0.2, True)),
    "clamp": (Thresholds(low=0.7), lambda g, x: torch.where(x >= 0.7, g, 0.0)),
    "clamp above": (Thresholds(high=-2.0), lambda g, x: torch.where(x <= -2.0, g, 0.0)),
}


@pytest.fixture(params=["compiled", "plain"])
def either(request, monkeypatch):
    """Runs a test with the compiled version, and with the one that serves everywhere."""
    if request.param == "plain":
        monkeypatch.setattr(threshold_bits, "native", lambda *_: None)


def values(thresholds: Thresholds, dtype: torch.dtype) -> torch.Tensor:
    """Every number of 16 bits; of wider types drawn ones, special ones, and those at and next to thresholds."""
    if dtype.itemsize == 2:
        return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    at = torch.tensor([thresholds.low, thresholds.high], dtype=dtype)
    adjacent = [at.nextafter(torch.full_like(at, there)) for there in (inf, -inf)]
    special = torch.tensor([nan, -nan, inf, -inf, 0.0, -0.0, 1e-44, -1e-44, 3e38, -3e38], dtype=dtype)
    drawn = torch.randn(3000, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 3
    drawn[::7] = nan  # also where torch's kernels treat it otherwise, near the end
    return torch.cat([drawn, at, *adjacent, special, drawn[:23]])


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", threshold_bits.DTYPES)
@pytest.mark.parametrize("name", BACKWARDS)
def test_backward_of_what_is_decoded_is_that_of_the_value(name, dtype):
    thresholds, backward = BACKWARDS[name]
    check(threshold_codec(thresholds, dtype), thresholds, backward, dtype)


@pytest.mark.parametrize("dtype", threshold_bits.DTYPES)
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-1.0, 1.0), (-0.3, 3.0)])
def test_backward_of_what_is_decoded_from_two_bits_is_that_of_the_value(low, high, dtype):
    def clamp(gradient, x):
        return torch.where((x >= low).logical_and(x <= high), gradient, 0.0)

    for backward in (clamp, lambda g, x: g * torch.sgn(x)) if low == high else (clamp,):
        check(class_codec(low, high, dtype), Thresholds(low, high), backward, dtype)


def check(codec, thresholds, backward, dtype):
    """Compares backward's bits at what is decoded and at the values, however they lie in memory."""
    if codec is None:  # a threshold between two numbers of 16 bits
        assert dtype.itemsize == 2 and thresholds.rounded_to(dtype) is None
        return
    x = values(thresholds, dtype)
    for laid_out in (x, x[: len(x) // 6 * 6].view(-1, 2, 3).permute(2, 0, 1)):
        gradient = torch.randn(laid_out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        code = codec.encode(laid_out, *codec.encode_options)
        decoded = codec.decode(code, *codec.decode_options, **codec.layout(laid_out))
        assert (decoded.shape, decoded.stride(), decoded.dtype) == (laid_out.shape, laid_out.stride(), dtype)
        actual, expected = (
            backward(gradient, saved).contiguous().view(WORDS[dtype.itemsize]) for saved in (decoded, laid_out)
        )
        assert torch.equal(actual, expected)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", threshold_bits.DTYPES)
@pytest.mark.parametrize("count", [0, 1, 7, 511, 512, 513, 70_001])
def test_a_code_takes_a_bit_for_each_element_and_twice_that_if_it_marks_nan(count, dtype):
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
    x[count // 2 : count // 2 + 1] = nan
    for nan_inside in (False, True):
        code = pack_inside(x, -0.5, 1.0, True, nan_inside)
        assert code.shape == ((count + 7) // 8,)
        decoded = unpack_inside(code, 2.0, -3.0, [count], [1], dtype)
        inside = (x > -0.5) & (x < 1.0) | x.isnan() & nan_inside
        assert torch.equal(decoded, torch.where(inside, 2.0, -3.0).to(dtype))
    code = pack_inside(x, -0.5, 1.0, True, True, True)
    assert code.shape == (2 * ((count + 7) // 8),)
    restored = unpack_inside(code, 2.0, -3.0, [count], [1], dtype)
    assert torch.equal(restored.isnan(), x.isnan())
    assert torch.equal(restored[~x.isnan()], decoded[~x.isnan()])


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        (threshold_codec(Thresholds(-0.0, 0.0, nan_varies=True), torch.float32), "2-bit x = 0"),
        (threshold_codec(Thresholds(-0.0, 0.0, nan_varies=True), torch.float32, "cuda"), "1-bit x = 0"),
        (threshold_codec(Thresholds(high=-0.0), torch.float32), "1-bit x ≤ 0"),
        (threshold_codec(Thresholds(-0.0, 6.0, is_open=True), torch.float32), "1-bit 0 < x < 6"),
        (class_codec(-0.0, 0.0, torch.float32), "2-bit x against 0"),
        (class_codec(-1.0, -0.0, torch.float32), "2-bit -1 ≤ x, x ≤ 0"),
    ],
)
def test_a_code_is_named_by_its_comparison(codec, name):
    assert codec.name == name


def test_what_a_type_cannot_tell_apart_has_no_codec():
    assert threshold_codec(Thresholds(high=0.1), torch.bfloat16) is None  # 0.1 is none of its numbers
    assert threshold_codec(Thresholds(1.0, 1.0, is_open=True), torch.float32) is None  # nothing is inside
    assert threshold_codec(Thresholds(), torch.float32) is None  # nothing is outside
    assert threshold_codec(Thresholds(1.0, -1.0), torch.float32) is None
    assert threshold_codec(Thresholds(high=0.0), torch.int64) is None
    assert class_codec(0.1, 1.0, torch.bfloat16) is None
    assert class_codec(1.0, 0.0, torch.float32) is None
    assert class_codec(-inf, 0.0, torch.float32) is None
    assert class_codec(0.0, 65504.0, torch.float16) is None  # nothing is above


def test_a_code_of_another_size_is_refused():
    code = pack_inside(torch.randn(100), 0.0, inf, False, False)
    with pytest.raises(
        ValueError, match="of 13 elements, for 200 bits with or without a plane for NaN: decode with the size"
    ):
        unpack_inside(code, 1.0, -1.0, [200], [1], torch.float32)
    with pytest.raises(ValueError, match="of 13 elements, for 100 times two bits: decode with the size"):
        unpack_classes(code, -1.0, 0.0, 1.0, [100], [1], torch.float32)
    assert (
        unpack_classes(pack_classes(torch.ones(0, 3), 0.0, 1.0), -1.0, 0.0, 2.0, [0, 3], [3, 1], torch.half).numel()
        == 0
    )


def test_the_operations_are_registered_as_torch_wants_them():
    x = torch.randn(3, 7)
    torch.library.opcheck(pack_inside, (x, 0.0, 6.0, True, True))
    torch.library.opcheck(pack_inside, (x, 0.0, 6.0, True, True, True))
    torch.library.opcheck(pack_classes, (x, 0.0, 6.0))
    torch.library.opcheck(unpack_classes, (pack_classes(x, 0.0, 6.0), -1.0, 3.0, 7.0, [3, 7], [7, 1], torch.bfloat16))
    torch.library.opcheck(
        unpack_inside, (pack_inside(x, 0.0, 6.0, True, True), 3.0, 12.0, [3, 7], [7, 1], torch.bfloat16)
    )
