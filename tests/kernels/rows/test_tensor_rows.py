"""Images as rows of channels: the same rows however they lie, and codes that are those of the rows themselves."""

import pytest
import torch
from lowtide.kernels.rows import sampling, sketches
from lowtide.kernels.rows.sampling import SAMPLINGS, restore_rows, sample_rows
from lowtide.kernels.rows.sketches import SKETCHES, sketch, unsketch
from lowtide.kernels.rows.tensor_rows import as_rows, chunks, pieces

LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
SIZES = [(3, 5, 4, 6), (1, 5, 4, 6), (3, 1, 4, 6), (3, 5, 1, 1)]


def image(size, layout, dtype=torch.float32):
    """Numbers of [samples, channels, height, width], which lie so."""
    numbers = torch.randn(size, generator=torch.Generator().manual_seed(0))
    return numbers.to(dtype).to(memory_format=LAYOUTS[layout])


def pixels(x):
    """[samples × height × width, channels]."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_rows_are_a_view_in_the_order_of_the_other_dimensions(size, layout):
    x = image(size, layout)
    rows = as_rows(x, 1)
    assert rows.data_ptr() == x.data_ptr()
    assert torch.equal(rows.flatten(0, 1), pixels(x))
    for elements in (1, 13, 10**6):
        parts = list(chunks(rows, elements))
        assert torch.equal(torch.cat([part.flatten(0, 1) for part in parts]), pixels(x))
        assert all(part.numel() <= max(elements, x.shape[1]) for part in parts)
    count = len(pixels(x))
    for start, end in ((0, count), (count // 3, count // 3 + 1), (count // 4, count - count // 4)):
        taken = torch.full((end - start, x.shape[1]), torch.nan)
        for part, values in pieces(rows, start, end):
            taken[part] = values
        assert torch.equal(taken, pixels(x)[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [*SAMPLINGS, *SKETCHES])
def test_the_code_of_an_image_is_that_of_its_pixels(method, layout, dtype, monkeypatch):
    for module in (sampling, sketches):
        monkeypatch.setattr(module, "_CHUNK", 256)  # many chunks, and some across samples
    x = image((3, 5, 4, 6), layout, dtype)
    size, stride = list(x.shape), list(x.stride())
    if method in SAMPLINGS:
        code, expected = sample_rows(x, method, 20, 3, dim=1), sample_rows(pixels(x), method, 20, 3)
        assert torch.equal(code, expected)
        restored = restore_rows(code, 20, size, stride, dtype, dim=1)
        assert torch.equal(pixels(restored), restore_rows(expected, 20, [72, 5], [5, 1], dtype))
    else:
        code, expected = sketch(x, method, 20, 3, dim=1), sketch(pixels(x), method, 20, 3)
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
        torch.testing.assert_close(code, expected, rtol=tolerance, atol=tolerance)
        restored = unsketch(code, method, 3, size, stride, dtype, dim=1)
        expected = unsketch(code, method, 3, [72, 5], [5, 1], dtype)
        torch.testing.assert_close(pixels(restored), expected, rtol=tolerance, atol=tolerance)
    assert restored.stride() == x.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operations_are_registered_as_torch_wants_them(layout):
    x = image((2, 3, 2, 4), layout)
    tests, layout = ("test_schema", "test_faketensor"), (list(x.shape), list(x.stride()), torch.float32)
    torch.library.opcheck(sample_rows, (x, "norms", 5, 1, 1), test_utils=tests)
    torch.library.opcheck(restore_rows, (sample_rows(x, "norms", 5, 1, 1), 5, *layout, 1), test_utils=tests)
    torch.library.opcheck(sketch, (x, "dct", 5, 1, 1), test_utils=tests)
    torch.library.opcheck(unsketch, (sketch(x, "dct", 5, 1, 1), "dct", 1, *layout, 1), test_utils=tests)


def test_what_cannot_be_seen_as_rows_is_refused():
    for x in (torch.randn(3, 4, 5).transpose(1, 2), torch.randn(3, 8, 5)[:, ::2]):
        with pytest.raises(ValueError, match=r"strides .* pass x.contiguous\(\)"):
            sample_rows(x, "norms", 4, 0, dim=0)
    with pytest.raises(ValueError, match="16 rows kept of 15: there must be 1 to 15"):
        sketch(torch.randn(3, 4, 5), "gaussian", 16, 0, dim=1)
