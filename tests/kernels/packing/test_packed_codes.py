"""Codes of 1 to 8 bits: they take exactly the bytes they need, and come back."""

import pytest
import torch
from lowtide.kernels.packing import packed_codes
from lowtide.kernels.packing.bits import pack_bits
from lowtide.kernels.packing.packed_codes import bytes_of_codes, pack_codes, unpack_codes

COUNTS = (*range(258), 4095, 4097, 140_001)


def codes_of(count: int, bits: int) -> torch.Tensor:
    """Codes of so many bits, random and reproducible."""
    generator = torch.Generator().manual_seed(257 * bits + count)
    return torch.randint(2**bits, (count,), dtype=torch.uint8, generator=generator)


@pytest.fixture(params=["compiled", "plain"])
def either(request, monkeypatch):
    """Runs a test with the compiled version, and with the one that serves everywhere."""
    if request.param == "plain":
        monkeypatch.setattr(packed_codes, "native", lambda *_: None)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_take_the_bytes_they_need_and_come_back(bits):
    for count in COUNTS:
        codes = codes_of(count, bits)
        packed = pack_codes(codes, bits)
        assert packed.shape == ((count * bits + 7) // 8,)
        assert torch.equal(unpack_codes(packed, bits, count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_plain_torch_and_c_pack_alike(bits, monkeypatch):
    packed = {count: pack_codes(codes_of(count, bits), bits) for count in COUNTS}
    monkeypatch.setattr(packed_codes, "native", lambda *_: None)
    for count, fast in packed.items():
        assert torch.equal(pack_codes(codes_of(count, bits), bits), fast)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_lie_as_digits_of_one_number(bits):
    codes = codes_of(21, bits)
    number = sum(code << bits * i for i, code in enumerate(codes.tolist()))
    assert bytes(pack_codes(codes, bits).tolist()) == number.to_bytes(bytes_of_codes(21, bits), "little")


def test_one_bit_is_packed_as_truth_values_are():
    codes = codes_of(1003, 1)
    assert torch.equal(pack_codes(codes, 1), pack_bits(codes.bool()))


@pytest.mark.usefixtures("either")
def test_bits_above_a_codes_own_do_not_reach_its_neighbours():
    codes = torch.tensor([255, 1, 254, 3], dtype=torch.uint8)
    assert unpack_codes(pack_codes(codes, 3), 3, 4).tolist() == [7, 1, 6, 3]


@pytest.mark.usefixtures("either")
def test_codes_are_packed_in_the_order_in_which_they_lie():
    codes = codes_of(60, 3).view(3, 4, 5)
    turned = codes.permute(2, 0, 1)
    assert torch.equal(pack_codes(turned, 3), pack_codes(codes, 3))


def test_what_cannot_be_packed_is_refused():
    codes = codes_of(16, 4)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"codes of {bits} bits: a code has 1 to 8"):
            pack_codes(codes, bits)
    with pytest.raises(ValueError, match=r"codes are torch.int64 .* pass uint8"):
        pack_codes(codes.long(), 4)
    with pytest.raises(ValueError, match="fill their memory"):
        pack_codes(codes[::2], 4)
    with pytest.raises(ValueError, match="not 9 bytes of uint8: decode with what it was encoded with"):
        unpack_codes(pack_codes(codes, 4), 4, 17)


def test_shapes_are_known_without_data():
    for count, bits in ((0, 1), (17, 3), (256, 8)):
        codes = codes_of(count, bits)
        torch.library.opcheck(pack_codes, (codes, bits))
        torch.library.opcheck(unpack_codes, (pack_codes(codes, bits), bits, count))
