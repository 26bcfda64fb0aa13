"""Integers come back from fewer bytes as they were, in any layout, and those that do not fit are refused."""

import pytest
import torch
from lowtide.kernels.codec import Codec
from lowtide.kernels.exact_codes.narrow_integers import NARROW_CODECS, NARROW_DTYPES, narrowest, widen_integers


def integers(dtype, *size):
    """Among them the least and the greatest that the dtype holds."""
    held = torch.iinfo(dtype)
    value = torch.randint(held.min, held.max + 1, size, dtype=torch.int64)
    value.view(-1)[0], value.view(-1)[-1] = held.min, held.max
    return value


@pytest.mark.parametrize("dtype", NARROW_DTYPES)
@pytest.mark.parametrize("layout", ["rows", "columns", "expanded"])
def test_integers_come_back_as_they_were(dtype, layout):
    codec = NARROW_CODECS[dtype]
    assert isinstance(codec, Codec) and codec.fidelity == "bitwise"
    value = integers(dtype, 7, 5, 3)
    value = {"rows": value, "columns": value.transpose(0, 2), "expanded": value[:, :1].expand(7, 5, 3)}[layout]
    assert codec.takes(value) == (layout != "expanded")
    code = codec.encode(value)
    assert code.dtype == dtype and code.shape == (value.numel(),)
    if layout != "expanded":
        widened = widen_integers(code, list(value.shape), list(value.stride()))
        assert torch.equal(widened, value) and widened.stride() == value.stride()


@pytest.mark.parametrize("dtype", NARROW_DTYPES)
def test_integers_that_do_not_fit_are_refused(dtype):
    held = torch.iinfo(dtype)
    for wrong in (held.min - 1, held.max + 1):
        value = integers(dtype, 40)
        value[20] = wrong
        with pytest.raises(IndexError, match=f"{wrong}.* do not fit {dtype}, {held.min} to {held.max}"):
            NARROW_CODECS[dtype].encode(value)


def test_no_integers_have_a_code():
    empty = torch.empty(0, 3, dtype=torch.int64)
    assert widen_integers(NARROW_CODECS[torch.int8].encode(empty), [0, 3], [3, 1]).shape == (0, 3)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 255, torch.uint8),
        (-1, 127, torch.int8),
        (0, 256, torch.int16),
        (-100, 50256, torch.int32),
        (-(2**31), 2**31 - 1, torch.int32),
        (0, 2**31, None),
    ],
)
def test_bounds_need_so_many_bytes(low, high, dtype):
    assert narrowest(low, high) is dtype


@pytest.mark.parametrize("dtype", NARROW_DTYPES)
def test_the_registration_passes_the_checks_of_torch(dtype):
    value = integers(dtype, 4, 6).t()
    torch.library.opcheck(NARROW_CODECS[dtype].encode, (value,))
    torch.library.opcheck(widen_integers, (value.reshape(-1).to(dtype), [4, 6], [1, 4]))
