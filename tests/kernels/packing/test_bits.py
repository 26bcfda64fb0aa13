"""Truth values in bits: packed sizes, the order of bits, products that are those with a mask."""

import pytest
import torch
from lowtide.kernels.backend import native
from lowtide.kernels.packing import bits
from lowtide.kernels.packing.bits import dense, multiply_bits, pack_bits, pack_plainly, unpack_bits, unpack_plainly


@pytest.fixture(params=["compiled", "plain"])
def either(request, monkeypatch):
    """Runs a test with the compiled version, and with the one that serves where there is no compiler."""
    if request.param == "plain":
        monkeypatch.setattr(bits, "native", lambda *_: None)
    elif native.native(bits.SOURCE, "pack", bits._POINTERS) is None:
        pytest.skip("there is no C compiler")


def truths_of(count: int) -> torch.Tensor:
    """Return equal truth values each time."""
    return torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5


@pytest.mark.usefixtures("either")
def test_every_number_of_truth_values_takes_an_eighth_of_a_byte_each_rounded_up_and_comes_back():
    for count in range(1, 258):
        truths = truths_of(count)
        packed = pack_bits(truths)
        assert packed.dtype == torch.uint8 and packed.numel() == -(-count // 8)
        assert torch.equal(packed, pack_plainly(truths))
        assert torch.equal(unpack_bits(packed, [count], [1]), truths)
        assert torch.equal(unpack_plainly(packed, count), truths)


@pytest.mark.usefixtures("either")
def test_nothing_packs_to_nothing():
    assert pack_bits(torch.empty(0, dtype=torch.bool)).numel() == 0
    assert unpack_bits(torch.empty(0, dtype=torch.uint8), [0, 3], [3, 1]).shape == (0, 3)
    assert multiply_bits(torch.empty(0, 4), torch.empty(0, dtype=torch.uint8), 2.0).shape == (0, 4)


def test_the_first_truth_value_is_the_lowest_bit():
    assert pack_bits(torch.tensor([True, False, False, True])).tolist() == [9]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_product_with_bits_is_the_product_with_their_mask_to_the_bit(dtype):
    x = torch.randn(7, 333).to(dtype)
    x[0, :6] = torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0, 0.0, -1.0])
    truths = truths_of(x.numel()).view_as(x)
    scale = float(torch.ones((), dtype=dtype).div_(0.9))
    mask = truths.to(dtype).div_(0.9)
    actual, expected = multiply_bits(x, pack_bits(truths), scale), x * mask
    assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_product_with_bits_is_what_fused_dropouts_backward_gives_to_the_bit(dtype):
    x, scale = torch.randn(7, 333).to(dtype), 1 / 0.9  # which 16 bits cannot hold
    truths = truths_of(x.numel()).view_as(x)
    expected = torch.ops.aten.native_dropout_backward(x, truths, scale)
    actual = multiply_bits(x, pack_bits(truths), scale)
    assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.usefixtures("either")
def test_bits_lie_in_the_order_of_memory():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    truths = torch.empty_like(x, dtype=torch.bool).copy_(x > 0)
    assert truths.stride() == x.stride()
    packed = pack_bits(truths)
    assert torch.equal(unpack_bits(packed, list(x.shape), list(x.stride())), truths)
    product = multiply_bits(x, packed, 1.0)
    assert product.stride() == x.stride()
    assert torch.equal(product, x * truths)


def test_the_gradient_of_a_product_with_bits_is_right():
    x = torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    packed = pack_bits(truths_of(45).view(5, 9))
    assert torch.autograd.gradcheck(lambda factor: multiply_bits(factor, packed, 1.25), (x,))


def test_the_operations_are_registered_as_torch_wants_them():
    x, packed = torch.randn(3, 5), pack_bits(truths_of(15))
    torch.library.opcheck(pack_bits, (truths_of(15),))
    torch.library.opcheck(unpack_bits, (packed, [3, 5], [5, 1]))
    torch.library.opcheck(multiply_bits, (x.requires_grad_(), packed, 2.0))


def test_dense_recognizes_tensors_that_fill_their_memory():
    whole = torch.empty(4, 6)
    assert (
        dense(whole) and dense(whole.t()) and dense(whole[:2]) and dense(torch.empty(3, 0)) and dense(torch.empty(()))
    )
    assert not dense(whole[:, :3]) and not dense(whole[:, :1].expand(4, 3)) and not dense(whole[::2])


def test_elements_with_gaps_between_them_are_refused():
    with pytest.raises(ValueError, match="must fill their memory"):
        multiply_bits(torch.ones(4, 6)[:, :3], pack_bits(truths_of(12)), 1.0)


def test_without_a_compiler_the_plain_versions_serve(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "_compiler", lambda: None)
    native._library.cache_clear()
    try:
        truths = truths_of(100)
        assert native.native(bits.SOURCE, "pack", bits._POINTERS) is None
        assert torch.equal(pack_bits(truths), pack_plainly(truths))
    finally:
        native._library.cache_clear()


def test_what_is_compiled_is_kept_and_a_folder_that_cannot_be_written_to_is_no_error(monkeypatch, tmp_path):
    if native._compiler() is None:
        pytest.skip("there is no C compiler")
    source = "#include <stdint.h>\nvoid nothing(int64_t count) { (void)count; }\n"
    (tmp_path / "file").write_text("not a folder")
    for folder, kept in ((tmp_path / "kept", 1), (tmp_path / "file" / "below", 0)):
        monkeypatch.setattr(native, "kernels_folder", lambda folder=folder: folder)
        native._library.cache_clear()
        assert native.native(source, "nothing", (bits.c_int64,)) is not None
        assert len(list(folder.glob("*.so"))) == kept
    native._library.cache_clear()
    monkeypatch.setattr(native, "kernels_folder", lambda: tmp_path / "kept")
    assert native.native("this is no C", "nothing", ()) is None
    native._library.cache_clear()
