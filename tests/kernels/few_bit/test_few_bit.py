"""Derivatives in few bits: the right level for each element, and products with them."""

import pytest
import torch
from lowtide.kernels.few_bit import few_bit
from lowtide.kernels.few_bit.few_bit import decode_levels, encode_by_borders, multiply_levels
from lowtide.kernels.packing.packed_codes import unpack_codes

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SPECIAL = [torch.nan, -torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 1.0, -1.0]


@pytest.fixture(params=["compiled", "plain"])
def either(request, monkeypatch):
    """Runs a test with the compiled version, and with the one that serves everywhere, a small chunk at a time."""
    if request.param == "plain":
        monkeypatch.setattr(few_bit, "native", lambda *_: None)
        monkeypatch.setattr(few_bit, "_CHUNK", 512)


def numbers(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of a normal distribution behind special ones."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(count))
    drawn[: len(SPECIAL)] = torch.tensor(SPECIAL)[:count]
    return drawn.to(dtype)


def spread(count: int) -> list[float]:
    """Borders or levels from -8 to 8, closer together about 0."""
    return [((2 * k + 1 - count) / count * 2) ** 3 for k in range(count)]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("border_count", [0, 1, 3, 15, 32, 33, 300])
def test_each_element_gets_the_level_of_its_interval(border_count, dtype):
    borders, bits = spread(border_count), 3
    levels = [5 * place % 8 for place in range(len(borders) + 1)]
    x = numbers(1003, dtype)
    x[20 : 20 + border_count] = torch.tensor(borders, dtype=dtype)  # a border belongs to the interval above
    codes = unpack_codes(encode_by_borders(x, borders, levels, bits), bits, 1003)
    limits = torch.tensor(borders, dtype=torch.promote_types(dtype, torch.float32))
    places = (limits <= x.to(limits.dtype)[:, None]).sum(1)
    places[x.isnan()] = border_count
    assert codes.tolist() == [levels[place] for place in places.tolist()]


@pytest.mark.usefixtures("either")
def test_nan_falls_into_the_last_interval_and_infinities_into_the_outer_ones():
    x = torch.tensor([torch.nan, -torch.nan, torch.inf, -torch.inf])
    for borders in ([0.0], spread(100)):
        code = encode_by_borders(x, borders, [0] * len(borders) + [1], 1)
        assert unpack_codes(code, 1, 4).tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_torch_and_c_give_the_same_bits(dtype, monkeypatch):
    gradient = numbers(5003, dtype).flip(0)

    def results():
        for count in (1, 2, 16, 200):
            x, bits = numbers(5003, dtype), 8
            code = encode_by_borders(x, spread(count), [*range(count), 255], bits)
            yield code
            levels = [k / 256 for k in range(256)]
            yield decode_levels(code, levels, bits, [5003], [1], dtype)
            yield multiply_levels(gradient, code, levels, bits)

    fast = list(results())
    monkeypatch.setattr(few_bit, "native", lambda *_: None)
    for plain, expected in zip(results(), fast, strict=True):
        torch.testing.assert_close(plain, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", range(1, 9))
def test_decoding_gives_levels_and_products_with_them(bits, dtype):
    size = (3, 7, 29)
    x = numbers(609, dtype).view(size).transpose(0, 2)
    levels = torch.linspace(-0.1, 1.1, 2**bits).tolist()
    code = encode_by_borders(x, spread(2**bits - 1), list(range(2**bits)), bits)
    assert code.shape == ((609 * bits + 7) // 8,)
    decoded = decode_levels(code, levels, bits, list(x.shape), list(x.stride()), dtype)
    assert decoded.dtype == dtype and decoded.stride() == x.stride()
    codes = unpack_codes(code, bits, 609).view(size).transpose(0, 2).int()
    assert torch.equal(decoded, torch.tensor(levels, dtype=torch.float64).to(dtype)[codes])
    product = multiply_levels(x, code, levels, bits)
    wide = torch.promote_types(dtype, torch.float32)
    expected = (x.to(wide) * torch.tensor(levels, dtype=wide)[codes]).to(dtype)
    assert product.stride() == x.stride()
    torch.testing.assert_close(product, expected, rtol=0, atol=0, equal_nan=True)


def test_the_gradient_of_gelu_in_four_bits_is_near_its_own():
    x = torch.randn(100_000).requires_grad_()
    torch.nn.functional.gelu(x).sum().backward()
    slope = x.grad
    borders = torch.linspace(-3, 3, 63).tolist()
    places = torch.bucketize(x.detach(), torch.tensor(borders), right=True)
    means = torch.zeros(64).index_add_(0, places, slope) / torch.bincount(places, minlength=64).clamp(min=1)
    code = encode_by_borders(x.detach(), borders, list(range(64)), 6)
    error = decode_levels(code, means.tolist(), 6, [100_000], [1], torch.float32) - slope
    assert error.square().mean() < 4e-4


@pytest.mark.usefixtures("either")
def test_nothing_has_an_empty_code():
    x = torch.empty(0, 4)
    code = encode_by_borders(x, [0.0], [0, 1], 1)
    assert code.shape == (0,)
    assert decode_levels(code, [0.0, 1.0], 1, [0, 4], [4, 1], torch.float32).shape == (0, 4)
    assert multiply_levels(x, code, [0.0, 1.0], 1).shape == (0, 4)


@pytest.mark.usefixtures("either")
def test_tensors_that_require_gradients_are_taken_as_others():
    x = torch.randn(300, requires_grad=True)
    code = encode_by_borders(x, [0.0], [0, 1], 1)
    assert not code.requires_grad
    assert torch.equal(multiply_levels(x, code, [0.0, 1.0], 1), multiply_levels(x.detach(), code, [0.0, 1.0], 1))


def test_what_cannot_be_encoded_is_refused():
    x = torch.ones(8, 6)
    with pytest.raises(ValueError, match=r"fill their memory; pass x.contiguous\(\)"):
        encode_by_borders(x[:, :3], [0.0], [0, 1], 1)
    with pytest.raises(ValueError, match=r"x is torch.int64"):
        encode_by_borders(x.long(), [0.0], [0, 1], 1)
    with pytest.raises(ValueError, match=r"border 1.0 follows 2.0: borders must be finite and ascend"):
        encode_by_borders(x, [2.0, 1.0], [0, 1, 0], 1)
    with pytest.raises(ValueError, match=r"border nan follows 0.0"):
        encode_by_borders(x, [0.0, torch.nan], [0, 1, 0], 1)
    with pytest.raises(ValueError, match="1 borders and 3 intervals: there must be one interval more"):
        encode_by_borders(x, [0.0], [0, 1, 0], 1)
    with pytest.raises(ValueError, match="levels 0 to 2 in 1 bits: they must be 0 to 1; give more bits"):
        encode_by_borders(x, [0.0], [0, 2], 1)
    with pytest.raises(ValueError, match="3 levels in 1 bits: there must be 1 to 2"):
        multiply_levels(x, torch.zeros(6, dtype=torch.uint8), [0.0, 0.5, 1.0], 1)
    with pytest.raises(ValueError, match="codes of 9 bits: a code has 1 to 8"):
        encode_by_borders(x, [0.0], [0, 1], 9)
    code = encode_by_borders(x, [0.0], [0, 1], 1)
    for run in (
        lambda: multiply_levels(x[2:], code, [0.0], 1),
        lambda: decode_levels(code, [0.0], 2, [48], [1], x.dtype),
    ):
        with pytest.raises(ValueError, match="decode with what it was encoded with"):
            run()


def test_the_operations_are_registered_as_torch_wants_them():
    x = torch.randn(3, 7)
    code = encode_by_borders(x, [0.0], [0, 1], 1)
    torch.library.opcheck(encode_by_borders, (x, [0.0], [0, 1], 1))
    torch.library.opcheck(decode_levels, (code, [0.0, 1.0], 1, [3, 7], [7, 1], torch.bfloat16))
    torch.library.opcheck(multiply_levels, (x, code, [0.0, 1.0], 1))
