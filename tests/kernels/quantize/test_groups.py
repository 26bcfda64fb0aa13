"""Groups in few bits: exact sizes, errors without bias and as large as predicted, and nothing lost silently."""

import itertools

import pytest
import torch
from lowtide.kernels.quantize import groups, plain_groups
from lowtide.kernels.quantize.groups import decode_groups, encode_groups
from lowtide.kernels.quantize.hadamard import spread_plainly
from lowtide.kernels.quantize.plain_groups import bytes_of_groups, encode_plainly, expected_squared_error

WAYS = tuple(itertools.product((False, True), (False, True)))  # stochastic, hadamard


@pytest.fixture(params=["compiled", "plain"])
def either(request, monkeypatch):
    """Runs a test with the compiled version, and with the one that serves everywhere, a small chunk at a time."""
    if request.param == "plain":
        monkeypatch.setattr(groups, "native", lambda *_: None)
        monkeypatch.setattr(plain_groups, "_CHUNK", 4096)


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    """Numbers of many sizes, groups apart in scale and mean, with outliers."""
    generator = torch.Generator().manual_seed(count + seed)
    x = torch.randn(count, generator=generator)
    x *= torch.logspace(-3, 3, count)[torch.randperm(count, generator=generator)]
    return x + torch.arange(count) // 256 % 7


def coded(x, bits=4, group=256, stochastic=True, hadamard=False, seed=3):
    """x encoded and decoded."""
    code = encode_groups(x, bits, group, stochastic, hadamard, seed)
    return decode_groups(code, bits, group, stochastic, hadamard, seed, list(x.shape), list(x.stride()), x.dtype)


def scales(code, count, group=256):
    """The scales that a code holds, a negative one for groups decoded to their levels."""
    return code[: 4 * -(-count // group)].view(torch.bfloat16)[1::2]


@pytest.mark.parametrize(("stochastic", "transformed"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_plain_torch_and_c_give_the_same_bits(stochastic, transformed, dtype, monkeypatch):
    def results():
        for bits, group, count in ((1, 8, 1), (2, 16, 257), (3, 256, 4096), (4, 256, 9999), (8, 4096, 9001)):
            x = numbers(count).to(dtype)
            code = encode_groups(x, bits, group, stochastic, transformed, 7)
            yield code
            yield decode_groups(code, bits, group, stochastic, transformed, 7, [count], [1], dtype)

    fast = list(results())
    monkeypatch.setattr(groups, "native", lambda *_: None)
    monkeypatch.setattr(plain_groups, "_CHUNK", 4096)
    for plain, expected in zip(results(), fast, strict=True):
        assert torch.equal(plain.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_have_exactly_the_stated_bytes_and_errors_stay_below_a_level(bits):
    for count, group in itertools.product((1, 7, 255, 256, 257, 5000), (8, 256, 4096)):
        x = numbers(count)
        for stochastic in (False, True):
            code = encode_groups(x, bits, group, stochastic, False, 0)
            assert code.shape == ((count * bits + 7) // 8 + 4 * ((count + group - 1) // group),)
            error = (decode_groups(code, bits, group, stochastic, False, 0, [count], [1], x.dtype) - x).abs()
            negative = scales(code, count, group).signbit()
            assert stochastic or not negative.any()
            for values, deviations, alone in zip(x.split(group), error.split(group), negative, strict=True):
                # the offset moves by 2^-7 of itself at most, and the scale with it
                width = values.max() - values.min() + values.min().abs() / 128
                level = width / (2**bits - 1) * (1 + 2.0**-7)
                assert deviations.max() <= (1 if alone else 0.5) * level + 1e-6 * values.abs().max()


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_rounding_at_random_is_unbiased_with_the_variance_of_its_formula(bits):
    points, draws = 1024, 4096
    x = numbers(points).clamp(-200, 200)
    variance = expected_squared_error(x, bits).double()
    deviations = (coded(x.repeat(draws), bits).view(draws, points) - x).double()
    bias = deviations.mean(0).abs()
    assert (bias <= 5 * (variance / draws).sqrt() + 1e-6 * x.abs().max()).double().mean() >= 0.99
    measured = deviations.square().mean(0)
    for here in range(0, points, 256):
        assert measured[here : here + 256].mean() / variance[here : here + 256].mean() == pytest.approx(1, rel=0.05)
    assert (measured / variance)[variance > 1e-4 * variance.max()].median() == pytest.approx(1, rel=0.05)


def test_it_is_so_behind_the_transform_too_over_signs_and_rounding():
    points, draws = 600, 4096
    x = numbers(points).clamp(-200, 200)
    variance = torch.stack([expected_squared_error(x, 2, hadamard=True, seed=seed) for seed in range(500)])
    variance = variance.double().mean(0)
    deviations = torch.stack([coded(x, 2, hadamard=True, seed=seed) for seed in range(draws)]).double() - x
    assert (deviations.mean(0).abs() <= 5 * (variance / draws).sqrt()).double().mean() >= 0.99
    assert (deviations.square().mean(0) / variance).median() == pytest.approx(1, rel=0.05)
    assert deviations.square().mean() / variance.mean() == pytest.approx(1, rel=0.05)


def test_the_smallest_and_the_largest_of_a_group_are_unbiased_too():
    x = torch.cat([torch.full((1,), -1.2345), torch.full((1,), 6.789), torch.linspace(-1, 6, 254)])
    drawn = torch.stack([coded(x, 2, seed=seed)[:2] for seed in range(4096)]).double()
    deviation = expected_squared_error(x, 2)[:2].double().div(4096).sqrt()
    assert ((drawn.mean(0) - x[:2]).abs() <= 5 * deviation + 1e-6).all()


@pytest.mark.parametrize("stochastic", [False, True])
def test_errors_are_predicted_and_near_a_twelfth_of_a_level_squared(stochastic):
    x = torch.rand(1 << 18)
    predicted = expected_squared_error(x, 4, 256, stochastic)
    measured = (coded(x, 4, stochastic=stochastic) - x).square()
    assert measured.mean() / predicted.mean() == pytest.approx(1, rel=0.01)
    assert predicted.mean() * 225 * 12 == pytest.approx(1, rel=0.03)
    if not stochastic:
        torch.testing.assert_close(measured, predicted, rtol=1e-2, atol=1e-7)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("zeros", [0.0, 0.4, 0.6, 0.95])
def test_groups_that_lie_on_their_levels_are_decoded_to_them_where_that_errs_less(bits, zeros):
    generator, points, draws = torch.Generator().manual_seed(bits), 256, 2000
    x = torch.rand(points, generator=generator)
    x[: int(zeros * points)] = 0
    predicted = expected_squared_error(x, bits).double()
    assert scales(encode_groups(x, bits, 256, True, False, 0), points).signbit().item() == (zeros > 0.5)
    deviations = (coded(x.repeat(draws), bits).view(draws, points) - x).double()
    if zeros > 0.5:
        assert not deviations[:, : int(zeros * points)].any() and predicted.mean() < (2**bits - 1) ** -2 / 12
    assert deviations.square().mean() / predicted.mean() == pytest.approx(1, rel=0.05)
    bias = deviations.mean(0).abs()
    assert (bias <= 5 * (predicted / draws).sqrt() + 1e-6).double().mean() >= 0.99


@pytest.mark.usefixtures("either")
def test_what_fills_the_last_group_up_does_not_count():
    x = torch.zeros(256 + 20)
    x[256:] = torch.linspace(0, 1, 20)  # the last, which fills up, lies on a level; of the others a twentieth do
    negative = scales(encode_groups(x, 3, 256, True, False, 0), len(x)).signbit()
    assert negative.tolist() == [False, False]


def test_the_transform_makes_errors_of_tensors_with_outliers_smaller_and_predicts_them():
    x = torch.randn(1 << 16)
    x[::256] *= 300
    predicted = expected_squared_error(x, 4, 256, True, True, 5)
    measured = (coded(x, 4, hadamard=True, seed=5) - x).square()
    assert measured.mean() / predicted.mean() == pytest.approx(1, rel=0.02)
    assert predicted.mean() < 0.5 * expected_squared_error(x, 4).mean()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("stochastic", "transformed"), WAYS)
@pytest.mark.parametrize("number", [torch.inf, -torch.inf, torch.nan, -torch.nan])
def test_groups_with_infinities_or_nan_are_decoded_to_nan_and_others_are_not(stochastic, transformed, number):
    for place in (0, 300, 511):
        x = numbers(1000)
        x[place] = number
        decoded = coded(x, 4, 256, stochastic, transformed)
        start = place // 256 * 256
        assert decoded[start : start + 256].isnan().all()
        decoded[start : start + 256] = 0
        assert decoded.isfinite().all()
        error = expected_squared_error(x, 4, 256, stochastic, transformed)
        assert error[start : start + 256].isnan().all() and error.isnan().sum() == 256


@pytest.mark.usefixtures("either")
def test_groups_too_wide_for_their_levels_are_decoded_to_nan_not_to_numbers():
    x = torch.ones(512)
    x[:2] = torch.tensor([-3e38, 3e38])
    decoded = coded(x, 4)
    assert decoded[:256].isnan().all() and torch.equal(decoded[256:], x[256:])
    x[:2] = torch.tensor([-1e38, 1e38])
    assert coded(x, 4).isfinite().all()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float16, 65504.0), (torch.bfloat16, 2.2e38), (torch.float32, 2.2e38)]
)
def test_the_largest_numbers_are_not_decoded_to_infinities(dtype, most):
    x = torch.rand(2560, generator=torch.Generator().manual_seed(0)).mul(most).to(dtype)
    x[5] = most
    for bits, stochastic in itertools.product((1, 2, 4, 8), (False, True)):
        decoded = coded(x, bits, 256, stochastic)
        assert decoded.isfinite().all() and (decoded - x).abs().max() <= 1.1 * most / (2**bits - 1)


def test_plain_torch_decides_as_c_at_the_boundary_and_for_negative_zeros():
    parts = torch.tensor(
        [0, 0, *[23] * 2035, *[24] * 2056, 6, 6, 72]
    )  # f (1 - f) is a twelfth on average, but for 4 / 2^28
    on_levels = parts / 256
    on_levels[1] = 255
    between = on_levels.clone()
    between[2] += 1 / 256
    for x, bits in ((on_levels, 8), (between, 8), (torch.tensor([0.0, -0.0]), 4), (torch.tensor([-0.0, 0.0, -0.0]), 4)):
        code = encode_groups(x, bits, 4096, True, False, 3)
        assert torch.equal(code, encode_plainly(x, bits, 4096, True, False, 3))
        assert scales(code, len(x), 4096).signbit().item() == (x is on_levels)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_groups_of_one_number_come_back_to_a_rounding_of_it(bits):
    for number in (0.0, -0.0, 1.0, -2.0, 0.1, -0.1, 1e-40, -1e-40, 1e-45, 1e38):
        x = torch.full((300,), number)
        for stochastic in (False, True):
            decoded = coded(x, bits, stochastic=stochastic)
            # a level is as wide as the offset's rounding, or as bfloat16's smallest number
            assert (decoded - x).abs().max() <= max(abs(number) / 128, 2.0**-132)
            if number in (0.0, 1.0, -2.0):
                assert torch.equal(decoded, x)


@pytest.mark.usefixtures("either")
def test_numbers_below_the_normal_ones_stay_within_a_level():
    x = torch.linspace(-1e-39, 1e-39, 512)
    for stochastic in (False, True):
        assert (coded(x, 4, stochastic=stochastic) - x).abs().max() <= 2e-39 / 15 * 1.02 + 2.0**-132
    tiny = torch.arange(256) * 2.0**-149
    assert (coded(tiny, 8, seed=1) - tiny).abs().max() <= 2.0**-132


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("transformed", [False, True])
def test_nothing_has_an_empty_code(transformed):
    x = torch.empty(0, 3)
    assert encode_groups(x, 4, 256, True, transformed, 0).shape == (0,)
    assert coded(x, hadamard=transformed).shape == (0, 3)
    assert expected_squared_error(x, 4, hadamard=transformed).shape == (0, 3)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("transformed", [False, True])
def test_tensors_of_any_dense_layout_come_back_in_it(transformed):
    x = numbers(2 * 3 * 5 * 7).view(2, 3, 5, 7).contiguous(memory_format=torch.channels_last)
    decoded = coded(x, 8, hadamard=transformed)
    assert decoded.stride() == x.stride()
    lying = x.permute(0, 2, 3, 1).reshape(-1)
    assert torch.equal(decoded.permute(0, 2, 3, 1).reshape(-1), coded(lying, 8, hadamard=transformed))
    assert expected_squared_error(x, 8).stride() == x.stride()


@pytest.mark.parametrize("transformed", [False, True])
def test_codes_depend_on_the_seed_and_not_on_the_number_of_threads(transformed):
    x, threads = numbers(100_003), torch.get_num_threads()
    code = encode_groups(x, 4, 256, True, transformed, 5)
    assert not torch.equal(encode_groups(x, 4, 256, True, transformed, 6), code)
    back = coded(x, hadamard=transformed)
    try:
        torch.set_num_threads(3)
        assert torch.equal(encode_groups(x, 4, 256, True, transformed, 5), code)
        assert torch.equal(coded(x, hadamard=transformed), back)
    finally:
        torch.set_num_threads(threads)


def test_the_transform_is_orthonormal():
    for count in (1, 2, 3, 255, 256, 300, 1000):
        for place in range(0, count, 37):
            unit = torch.zeros(count)
            unit[place] = 1
            moved = spread_plainly(unit, False, 9, 0)
            assert moved.square().sum() == pytest.approx(1, abs=1e-6)
            torch.testing.assert_close(spread_plainly(moved, True, 9, 0), unit)


@pytest.mark.usefixtures("either")
def test_no_gradient_is_recorded():
    x = torch.randn(300, requires_grad=True)
    for transformed in (False, True):
        assert not encode_groups(x, 4, 256, True, transformed, 0).requires_grad
        assert not expected_squared_error(x, 4, hadamard=transformed).requires_grad


def test_what_cannot_be_encoded_is_refused():
    x = torch.ones(16, 16)
    for group in (0, 4, 100, 8192):
        with pytest.raises(
            ValueError, match=f"groups of {group} elements: the size must be a power of two from 8 to 4096"
        ):
            encode_groups(x, 4, group, True, False, 0)
    with pytest.raises(ValueError, match="codes of 9 bits: a code has 1 to 8"):
        encode_groups(x, 9, 256, True, False, 0)
    with pytest.raises(ValueError, match="fill their memory"):
        encode_groups(x[:, ::2], 4, 256, True, False, 0)
    code = encode_groups(x, 4, 256, True, False, 0)
    with pytest.raises(ValueError, match="decode with what it was encoded with"):
        decode_groups(code, 4, 128, True, False, 0, [256], [1], torch.float32)


def test_the_operations_are_registered_as_torch_wants_them():
    x = torch.randn(10, 30)
    code = encode_groups(x, 3, 256, True, True, 1)
    assert len(code) == bytes_of_groups(300, 3, 256) == 121
    torch.library.opcheck(encode_groups, (x, 3, 256, True, True, 1))
    torch.library.opcheck(decode_groups, (code, 3, 256, True, True, 1, [10, 30], [30, 1], torch.bfloat16))
