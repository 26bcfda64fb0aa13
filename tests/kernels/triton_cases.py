"""What kernels in Triton have to give, on a GPU or through Triton's interpreter; `test_triton.py` runs it."""

import os
from importlib import import_module

import pytest
import torch
from lowtide.kernels import (
    bits,
    few_bit,
    group_quantization,
    linear_cross_entropy,
    norms,
    packed_codes,
    pooling,
    threshold_classes,
    threshold_codes,
    triton_versions,
)
from lowtide.kernels.bits import multiply_bits, multiply_plainly, pack_bits, pack_plainly, unpack_bits
from lowtide.kernels.few_bit import decode_levels, encode_by_borders, multiply_levels, round_to_levels
from lowtide.kernels.group_quantization import decode_groups, encode_groups
from lowtide.kernels.linear_cross_entropy import MEAN, SUM, linear_cross_entropy_plainly
from lowtide.kernels.norms import BIAS, INPUT, WEIGHT
from lowtide.kernels.packed_codes import pack_codes, pack_codes_plainly, unpack_codes
from lowtide.kernels.pooling import bits_of_code, max_pool2d_backward_from_codes, max_pool2d_codes
from lowtide.kernels.threshold_classes import pack_classes, unpack_classes
from lowtide.kernels.threshold_codes import Thresholds, pack_inside, unpack_inside
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
LAUNCHING = ("bits", "packed_codes", "pooling", "linear_cross_entropy", "norms")
SERVED = (
    *(bits, packed_codes, few_bit, group_quantization, threshold_codes, threshold_classes),
    *(pooling, linear_cross_entropy, norms),
)
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
aten = torch.ops.aten


def conversions_of_torch(convert):
    """The interpreter's conversion, but between bfloat16 and float32 as processors do it: it rounds neither those that
    are halfway nor those below the smallest normal number as they do."""
    import triton.language as tl

    def converted(values, source, target, rounding):
        bits = torch.from_numpy(values.copy())
        if (source, target) == (tl.float32, tl.bfloat16):
            return bits.bfloat16().view(torch.uint16).numpy()
        if (source, target) == (tl.bfloat16, tl.float32):
            return bits.view(torch.bfloat16).float().view(torch.int32).numpy()
        return convert(values, source, target, rounding)

    return converted


@pytest.fixture(autouse=True)
def launches(monkeypatch):
    """Has Triton's versions serve, on a CPU too; a test in which none was launched fails."""
    names: list[str] = []

    def counted(kernel, programs, *arguments, **constants):
        names.extend([kernel.__name__] * programs)
        triton_versions.launch(kernel, programs, *arguments, **constants)

    if INTERPRETED:
        interpreter = import_module("triton.runtime.interpreter")
        monkeypatch.setattr(interpreter, "_convert_float", conversions_of_torch(interpreter._convert_float))
    for name in LAUNCHING:
        monkeypatch.setattr(import_module(f"lowtide.kernels.{name}_triton"), "launch", counted)
    if INTERPRETED:
        for module in SERVED:
            monkeypatch.setattr(module, "triton_version", lambda n, _: import_module(f"lowtide.kernels.{n}_triton"))
    torch.manual_seed(0)
    yield names
    assert names


@pytest.fixture(params=[False, True], ids=["int32", "int64"])
def either_width(request, monkeypatch):
    """Runs a test with places in 32 bits, and in 64 as if there were more elements."""
    if request.param:
        monkeypatch.setattr(triton_versions, "_INT32_ELEMENTS", 0)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """That two tensors are equal, signs of zero included; not-a-number may have any bits."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    there = ~expected.isnan()
    assert torch.equal(found.isnan(), ~there)
    word = WORDS[found.dtype.itemsize]
    assert torch.equal(found[there].view(word), expected[there].view(word))


def randn(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers on every device."""
    return torch.randn(size, dtype=torch.float64).to(DEVICE, dtype)


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
def test_intervals_and_draws_between_levels_are_those_of_the_plain_version(border_count, bits, dtype):
    x, wide = special(2053, dtype), torch.promote_types(dtype, torch.float32)
    borders = torch.linspace(-2, 2, border_count + 2, dtype=wide)[1:-1]
    x[20 : 20 + border_count] = borders.to(DEVICE, dtype)  # a border belongs to the interval above
    numbers = [7 * place % 2**bits for place in range(border_count + 1)]
    code = encode_by_borders(x, borders.tolist(), numbers, bits)
    assert torch.equal(code, few_bit.encode_plainly(x, borders, torch.tensor(numbers), bits))
    levels = torch.linspace(-2, 2, 2 + min(border_count, 2**bits - 2), dtype=wide)
    code, factors = round_to_levels(x, levels.tolist(), bits, 7), levels.diff().reciprocal().mul(2.0**24)
    assert torch.equal(code, few_bit.round_plainly(x, levels, factors, bits, few_bit.state_of(7)))
    assert not torch.equal(round_to_levels(x, levels.tolist(), bits, 8), code)


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


def assert_grouped_as_plainly(x: Tensor, bits: int, group: int, *way: bool | int) -> Tensor:
    """That a code and what it is decoded to are those of the plain version; returns the latter. way: as encoded."""
    code = encode_groups(x, bits, group, *way)
    assert torch.equal(code, group_quantization.encode_plainly(x, bits, group, *way))
    found, expected = (torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE) for _ in range(2))
    found = decode_groups(code, bits, group, *way, list(x.shape), list(x.stride()), x.dtype)
    group_quantization.decode_plainly(code, expected.as_strided((x.numel(),), (1,)), bits, group, *way)
    assert_same_bits(found, expected)
    return found


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
    for stochastic, hadamard in ((False, False), (True, False), (False, True), (True, True)):
        assert_grouped_as_plainly(x, bits, group, stochastic, hadamard, 7)


def test_groups_that_are_equal_tiny_or_cannot_be_coded_are_those_of_the_plain_version():
    x = randn(12, 8)
    x[1], x[2], x[3], x[4, 0], x[5, 1], x[6, 2] = 0.0, -0.0, -1.3, torch.inf, -torch.inf, torch.nan
    x[7, 0], x[7, 1] = -3e38, 3e38  # levels overflow
    x[8] = torch.arange(8) * 1e-42
    x[9, 3], x[10] = -1e-42, 3.0 + torch.arange(8).to(DEVICE) * 2.0**-22
    for way in ((False, False, 1), (True, False, 2), (True, True, 3)):
        found = assert_grouped_as_plainly(x, 3, 8, *way)
        if not way[1]:
            assert found.isnan().any(1).nonzero().flatten().tolist() == [4, 5, 6, 7]


def test_codes_lie_in_the_order_of_memory_and_take_tensors_that_require_gradients():
    x = randn(3, 5, 7).transpose(0, 2).requires_grad_()
    code = encode_by_borders(x, [0.0], [0, 1], 1)
    assert_grouped_as_plainly(x, 4, 8, True, True, 5)
    assert not encode_groups(x, 4, 8, True, True, 5).requires_grad
    assert not code.requires_grad and not round_to_levels(x, [0.0, 1.0], 1, 0).requires_grad
    assert torch.equal(decode_levels(code, [0.0, 1.0], 1, [7, 5, 3], list(x.stride()), x.dtype), (x >= 0).float())
    product = multiply_levels(x, code, [0.0, 1.0], 1)
    assert product.stride() == x.stride() and torch.equal(product, x.detach().relu())


def test_nothing_has_an_empty_code(launches):
    x = randn(0, 4)
    code = encode_by_borders(x, [0.0], [0, 1], 1)
    assert (
        code.shape == round_to_levels(x, [0.0, 1.0], 1, 0).shape == pack_inside(x, 0.0, 1.0, True, True).shape == (0,)
    )
    assert decode_levels(code, [0.0, 1.0], 1, [0, 4], [4, 1], torch.float32).shape == (0, 4)
    assert multiply_levels(x, code, [0.0, 1.0], 1).shape == (0, 4)
    assert assert_grouped_as_plainly(x, 4, 8, True, True, 5).shape == (0, 4)
    assert unpack_classes(pack_classes(x, 0.0, 1.0), 0.0, 1.0, 2.0, [0, 4], [4, 1], x.dtype).shape == (0, 4)
    assert not launches
    launches.append("none was needed")


WINDOWS = [
    ([2, 2], [2, 2], [0, 0], [1, 1], False),
    ([3, 3], [2, 2], [1, 1], [1, 1], False),
    ([3, 2], [2, 1], [1, 0], [2, 3], True),
    ([5, 3], [1, 2], [2, 1], [1, 1], True),
    ([1, 1], [1, 1], [0, 0], [1, 1], False),
    ([1, 7], [3, 3], [0, 3], [1, 1], True),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def spoiled(x: Tensor) -> Tensor:
    """x with ties, infinities and NaN in it."""
    x = x.mul(2).round()
    x.view(-1)[::7] = -torch.inf
    x.view(-1)[3::31] = torch.nan
    x.view(-1)[5::29] = torch.inf
    return x


def assert_pooled_as_by_torch(x: Tensor, window) -> None:
    """That y and the gradient of x are those of torch, which on a GPU adds 16-bit gradients in single precision.

    What is expected is that for a contiguous input: on a GPU it is another where channels come last and a window holds
    nothing but -inf.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    before = x.to(wide).contiguous()
    y, indices = aten.max_pool2d_with_indices(before, *window)
    gradient = randn(*y.shape, dtype=x.dtype)
    expected = aten.max_pool2d_with_indices_backward(gradient.to(wide), before, *window, indices).to(x.dtype)
    ours, codes = max_pool2d_codes(x, *window)
    assert ours.stride() == aten.max_pool2d_with_indices(x, *window)[0].stride()
    assert_same_bits(ours, y.to(x.dtype))
    assert codes.shape == (-(-bits_of_code(window[0]) * y.numel() // 8),)
    told = (list(x.shape), *window, not ours.is_contiguous())
    result = max_pool2d_backward_from_codes(torch.empty_like(ours).copy_(gradient), codes, *told)
    assert_same_bits(result, expected)


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pooling_gives_the_bits_of_torch_with_ties_infinities_and_nan(window, layout):
    assert_pooled_as_by_torch(spoiled(randn(1, 3, 11, 10)).contiguous(memory_format=layout), window)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_pooling_gives_the_bits_of_torch_in_other_types(dtype):
    assert_pooled_as_by_torch(randn(1, 3, 10, 9, dtype=dtype), WINDOWS[1])


@pytest.mark.usefixtures("either_width")
def test_pooling_takes_planes_smaller_than_a_window_none_and_strided_ones():
    for size in ((2, 3, 2, 1), (1, 2, 1, 5)):
        assert_pooled_as_by_torch(randn(*size), ([3, 3], [1, 1], [1, 1], [1, 1], False))
    assert_pooled_as_by_torch(randn(5, 9, 7), WINDOWS[1])
    assert_pooled_as_by_torch(randn(0, 5, 9, 7), WINDOWS[1])
    assert_pooled_as_by_torch(randn(4, 4, 9, 14)[:, ::2, :, ::2], WINDOWS[1])


@pytest.mark.parametrize("value", [-torch.inf, 0.0])
def test_where_all_are_equal_the_place_is_the_one_that_torch_chooses(value):
    assert_pooled_as_by_torch(torch.full((1, 3, 9, 9), value, device=DEVICE), WINDOWS[1])


@pytest.mark.parametrize("window", WINDOWS[:2], ids=str)
def test_the_codes_are_those_of_the_plain_version_and_can_be_read_by_it(window, monkeypatch):
    x = randn(1, 3, 9, 10)
    y, codes = max_pool2d_codes(x, *window)
    arguments = (torch.ones_like(y), codes, list(x.shape), *window, not y.is_contiguous())
    result = max_pool2d_backward_from_codes(*arguments)
    monkeypatch.setattr(pooling, "triton_version", lambda *_: None)
    monkeypatch.setattr(pooling, "native", lambda *_: None)
    assert torch.equal(max_pool2d_codes(x, *window)[1], codes)
    assert torch.equal(max_pool2d_backward_from_codes(*arguments), result)


def test_windows_of_more_places_than_eight_bits_tell_apart_are_left_to_the_plain_version(launches):
    assert_pooled_as_by_torch(randn(1, 2, 20, 20), ([17, 17], [2, 2], [0, 0], [1, 1], False))
    assert not launches
    launches.append("none was needed")


def test_codes_that_no_window_has_and_windows_outside_of_the_input_have_no_gradient():
    codes = torch.full((100,), 255, dtype=torch.uint8, device=DEVICE)
    told = ([2, 4, 9, 9], *WINDOWS[1], False)
    assert not max_pool2d_backward_from_codes(torch.ones(2, 4, 5, 5, device=DEVICE), codes, *told).any()
    outside = ([2, 2], [1, 1], [1, 1], [2, 2], False)
    y, codes = max_pool2d_codes(randn(1, 1, 1, 1), *outside)
    assert y.item() == -torch.inf
    assert not max_pool2d_backward_from_codes(torch.ones_like(y), codes, [1, 1, 1, 1], *outside, False).any()


IGNORED = -100


def distance(found: Tensor, expected: Tensor) -> float:
    """‖found - expected‖ / ‖expected‖."""
    difference, size = (found.double() - expected.double()).norm(), expected.double().norm()
    return float(difference / size) if size > 0 else float(difference)


@pytest.fixture
def small_blocks(monkeypatch):
    """Has 300 classes go in two blocks, and 8 rows in two chunks."""
    monkeypatch.setattr(import_module("lowtide.kernels.linear_cross_entropy_triton"), "_MOST_BLOCK", 256)
    monkeypatch.setattr(linear_cross_entropy, "_CHUNK_BYTES", 1)
    monkeypatch.setattr(linear_cross_entropy, "_LEAST_ROWS", 4)


def problem(dtype: torch.dtype = torch.float32, rows: int = 8, features: int = 8, classes: int = 300):
    """hidden, weight, bias, target; every seventh row is ignored."""
    target = torch.randint(0, classes, (rows,))
    target[3::7] = IGNORED
    operands = (randn(rows, features), randn(classes, features) / features**0.5 * 2, randn(classes))
    return *(operand.to(dtype) for operand in operands), target.to(DEVICE)


def computed(operands, weights, reduction, smoothing, upcast=None, ignored=IGNORED):
    told = (weights, reduction, ignored, smoothing, upcast, 7)
    return torch.ops.lowtide.linear_cross_entropy(*operands, *told)


def exact(operands, weights, reduction, smoothing, ignored=IGNORED):
    """Loss and gradients in float64, from torch's autograd."""
    leaves = [operand.double().detach().requires_grad_() for operand in operands[:3]]
    weights = None if weights is None else weights.double()
    loss = linear_cross_entropy_plainly(*leaves, operands[3], weights, reduction, ignored, smoothing)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    ("dtype", "limit", "smoothing", "weighted"),
    [
        *((torch.float32, 1e-6, smoothing, weighted) for smoothing in (0.0, 0.1, 1.0) for weighted in (False, True)),
        (torch.float64, 1e-14, 0.0, False),
        (torch.float64, 1e-14, 0.1, True),
    ],
    ids=str,
)
def test_loss_and_gradients_of_cross_entropy_are_those_of_torch_in_double_precision(dtype, limit, smoothing, weighted):
    operands = problem(dtype)
    weights = torch.rand(300).add(0.1).to(DEVICE, dtype) if weighted else None
    reduction = SUM if smoothing == 0.1 else MEAN
    found, truth = (each(operands, weights, reduction, smoothing) for each in (computed, exact))
    for one, other in zip(found, truth, strict=True):
        assert one.dtype == dtype and distance(one, other) <= limit


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("upcast", [torch.float32, None])
def test_cross_entropy_in_16_bits_is_as_far_from_the_truth_as_that_of_torch(upcast):
    operands = problem(torch.bfloat16)
    leaves = [operand.clone().requires_grad_() for operand in operands[:3]]
    loss = linear_cross_entropy_plainly(*leaves, operands[3], logits_dtype=upcast)
    expected = loss.detach(), *torch.autograd.grad(loss, leaves)
    found, truth = computed(operands, None, MEAN, 0.0, upcast), exact(operands, None, MEAN, 0.0)
    for one, other, right in zip(found, expected, truth, strict=True):
        assert one.dtype == other.dtype
        assert distance(one, right) <= 2 * max(distance(other, right), 2.0**-9)
    if upcast is not None:
        assert distance(found[0], expected[0]) <= 1e-6


@pytest.mark.usefixtures("small_blocks")
def test_ignored_rows_large_logits_infinities_and_nan_in_cross_entropy_are_as_in_torch():
    hidden, weight, bias, target = problem()
    target = torch.where(target == IGNORED, target, target.clamp(min=260))
    classes = target.clamp(min=260)
    classes[::3] = 270
    without = bias.clone()
    without[:256] = -torch.inf  # the first block holds nothing else
    cases = (
        (hidden, weight, bias, classes, 270),
        (hidden * 40, weight * 40, bias, target, IGNORED),
        (hidden, weight, without, target, IGNORED),
    )
    for *operands, ignored in cases:
        found, truth = computed(operands, None, MEAN, 0.0, None, ignored), exact(operands, None, MEAN, 0.0, ignored)
        assert all(distance(one, other) <= 1e-6 for one, other in zip(found, truth, strict=True))
    hidden[4] = torch.nan
    spoiled_operands = hidden, weight, bias, target
    found, truth = computed(spoiled_operands, None, MEAN, 0.0), exact(spoiled_operands, None, MEAN, 0.0)
    assert all(torch.equal(one.isnan(), other.isnan()) for one, other in zip(found, truth, strict=True))


@pytest.mark.usefixtures("small_blocks")
def test_a_target_that_is_no_class_is_not_followed_out_of_its_row():
    version = import_module("lowtide.kernels.linear_cross_entropy_triton")
    memory = torch.full((5, 300), 7.0, device=DEVICE)
    one, losses = torch.ones((), device=DEVICE), torch.zeros(3, device=DEVICE)
    targets = torch.tensor([-1, 900, -(2**40)], device=DEVICE)
    version.softmax_rows(memory[1:4], targets, one.expand(3).contiguous(), None, 300 * one, one, 0.0, -100, losses)
    assert (memory[0] == 7).all() and (memory[4] == 7).all()
    torch.testing.assert_close(memory[1:4], torch.full_like(memory[1:4], 1 / 300))


def test_probabilities_are_as_exact_as_single_precision_allows_down_to_the_smallest():
    version = import_module("lowtide.kernels.linear_cross_entropy_triton")
    below = torch.cat([torch.zeros(2), -torch.linspace(0, 80, 4093)]).to(DEVICE)
    logits, one, loss = below[None].clone(), torch.ones((), device=DEVICE), torch.zeros(1, device=DEVICE)
    target = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    version.softmax_rows(logits, target, one[None], None, one, one, 0.0, -100, loss)
    probabilities = below.double().softmax(0)
    assert ((logits[0, 1:] - probabilities[1:]) / probabilities[1:]).abs().max() <= 2.0**-22
    assert distance(loss, -probabilities[:1].log()) <= 2.0**-23


def normalized(size: tuple[int, ...], columns: int, centred: bool, dtype: torch.dtype):
    """A gradient, x̂ and r of those sizes, and weight and bias, all from float64."""
    x, gradient, weight, bias = (randn(*each, dtype=torch.float64) for each in (size, size, (columns,), (columns,)))
    x = 3 * x + 1
    x = x - x.mean(-1, keepdim=True) if centred else x
    r = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return [tensor.to(dtype) for tensor in (gradient, x * r, r, weight, bias)]


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("size", [(34, 36), (3, 5, 7), (1, 1500)])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 4e-3)], ids=str
)
def test_gradients_of_normalization_are_those_of_the_plain_version(size, dtype, limit, centred):
    gradient, x, r, weight, bias = normalized(size, size[-1], centred, dtype)
    summed = tuple(range(len(size) - 1))
    g, y, wide = gradient.double(), x.double(), weight.double()
    along = (g * wide * y).mean(-1, keepdim=True)
    plain = (g * wide).mean(-1, keepdim=True) if centred else 0
    expected = (g * wide - plain - y * along) * r.double(), (g * y).sum(summed), g.sum(summed)
    told = (gradient, x, r, weight, centred)
    found = torch.ops.lowtide.layer_norm_backward_from_normalized(*told, INPUT | WEIGHT | BIAS)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype and distance(one, other) <= limit
    alone = torch.ops.lowtide.layer_norm_backward_from_normalized(*told, INPUT)
    assert torch.equal(alone[0], found[0]) and not alone[1].numel()
    if dtype == torch.float32:
        away = weight.sign() * (weight.abs() + 0.5)
        output = (y * away.double() + bias.double()).float()
        from_output = (gradient, output, r, away, bias, centred, WEIGHT | BIAS)
        found = torch.ops.lowtide.layer_norm_backward_from_output(*from_output)
        assert all(distance(one, other) <= limit for one, other in zip(found[1:], expected[1:], strict=True))
