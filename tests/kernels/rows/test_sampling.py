"""Sampled rows: no bias, the variance of their formulas, exact probabilities, and nothing lost silently."""

import pytest
import torch
from lowtide.kernels.backend import counter_random
from lowtide.kernels.backend.counter_random import state_of, words_plainly
from lowtide.kernels.rows.sampling import (
    SAMPLINGS,
    bytes_of_rows,
    choose_rows,
    restore_rows,
    row_norms,
    sample_rows,
    sampling_variance,
    sampling_variance_of_norms,
    split_certain,
)
from lowtide.kernels.rows.tensor_rows import as_rows

ROWS, KEPT, DRAWS = 48, 12, 20_000


def rows_of(kind: str, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """X and Y with independent rows, a few large ones, or rows much like each other; float64."""
    generator = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) for columns in (5, 3))
    if kind == "heavy":
        return x / torch.rand(rows, 1, generator=generator, dtype=torch.float64), y
    if kind == "correlated":
        return x * 0.3 + 1, 0.4 * y + 0.7 * x[:, :3] + 0.5
    return x, y


@pytest.fixture(scope="module")
def words():
    """Return a function that draws for many seeds at once as for one."""
    states = [[state_of(seed, stream) for stream in (0, 1)] for seed in range(DRAWS)]
    states = torch.tensor([[state - 2**64 * (state >= 2**63) for state in pair] for pair in states])
    return lambda stream, count: words_plainly(states[:, stream, None], torch.arange(count))


def restored(x, method, kept, seed=3):
    """x with all but so many rows gone."""
    code = sample_rows(x, method, kept, seed)
    return restore_rows(code, kept, list(x.shape), list(x.stride()), x.dtype)


@pytest.mark.parametrize("kind", ["independent", "heavy", "correlated"])
@pytest.mark.parametrize("method", SAMPLINGS)
def test_products_are_unbiased_with_the_variance_of_the_formula(method, kind, words):
    x, y = rows_of(kind)
    chosen, weights = choose_rows(row_norms(as_rows(x)), method, KEPT, words)
    for seed in (0, 5, DRAWS - 1):  # they are the operation's
        expected = torch.zeros_like(x).index_add_(0, chosen[seed], x[chosen[seed]] * weights[seed, :, None])
        torch.testing.assert_close(restored(x, method, KEPT, seed), expected)
    deviations = (x[chosen] * weights[..., None]).mT @ y[chosen] - x.T @ y
    variance = sampling_variance(method, x, y, KEPT)
    assert deviations.square().sum((1, 2)).mean() / variance == pytest.approx(1, rel=0.03)
    assert deviations.mean(0).square().sum() < 4 * variance / DRAWS


@pytest.mark.parametrize("method", SAMPLINGS)
def test_from_norms_alone_it_is_the_mean_variance_over_rows_of_independent_signs(method):
    x, y = rows_of("heavy")
    signs = torch.randint(0, 2, (500, ROWS, 1), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    mean = torch.stack([sampling_variance(method, x, y * sign, KEPT) for sign in signs.double()]).mean()
    predicted = sampling_variance_of_norms(method, x.norm(dim=1), y.norm(dim=1), KEPT)
    assert mean / predicted == pytest.approx(1, rel=0.02)  # the rest is the sample's own scatter


def test_each_better_way_has_the_smaller_variance():
    x, y = rows_of("heavy")
    y = y / y.norm(dim=1, keepdim=True)
    variances = [sampling_variance(method, x, y, KEPT).item() for method in SAMPLINGS]
    uniform, norms, without, winners = variances
    assert without < winners < norms < uniform


@pytest.mark.parametrize("kind", ["independent", "heavy"])
def test_without_replacement_rows_come_once_and_with_exactly_their_probability(kind, words):
    norms = row_norms(as_rows(rows_of(kind)[0]))
    chosen, weights = choose_rows(norms, "without_replacement", KEPT, words)
    assert (chosen.sort(dim=1).values.diff(dim=1) > 0).all()
    inclusion = torch.zeros(ROWS, dtype=torch.float64).index_put_((chosen[0],), 1 / weights[0])
    for i in range(1, 500):
        inclusion[chosen[i]] = 1 / weights[i]
    assert inclusion.max() <= 1 + 1e-12 and inclusion.sum() == pytest.approx(KEPT)
    below = inclusion < 1 - 1e-9
    ratio = inclusion[below] / norms[below]
    assert ratio.max() / ratio.min() == pytest.approx(1)
    assert below.all() == (kind == "independent")
    measured = chosen.flatten().bincount(minlength=ROWS) / DRAWS
    assert ((measured - inclusion).abs() <= 4.5 * (inclusion * (1 - inclusion) / DRAWS).sqrt() + 1e-9).all()


def test_winners_are_as_many_as_make_the_rest_of_probability_per_draw_least():
    for kind in ("independent", "heavy"):
        norms = row_norms(as_rows(rows_of(kind)[0]))
        ordered = (norms / norms.sum()).sort(descending=True).values
        per_draw = [(1 - ordered[:c].sum()) / (KEPT - c) for c in range(KEPT)]
        certain, rest = split_certain(norms, "winner_take_all", KEPT)
        assert len(certain) == min(range(KEPT), key=per_draw.__getitem__)
        assert certain.tolist() == norms.argsort(descending=True)[: len(certain)].tolist()
        assert sorted([*certain.tolist(), *rest.tolist()]) == list(range(ROWS))


@pytest.mark.parametrize("method", ["without_replacement", "winner_take_all"])
def test_all_rows_kept_are_the_tensor_itself(method):
    for x in (torch.randn(20, 7), torch.full((13, 3), 0.1), torch.zeros(5, 2), torch.randn(1, 4)):
        assert torch.equal(restored(x, method, len(x)), x)
        assert sampling_variance(method, x, x, len(x)) == 0


@pytest.mark.parametrize("method", SAMPLINGS)
def test_rows_of_zeros_take_no_place_from_others(method):
    x = torch.zeros(50, 4)
    assert torch.equal(restored(x, method, 10), x)
    assert restored(x[:, :0].contiguous(), method, 10).shape == (50, 0)
    x[::10] = torch.randn(5, 4)
    if method in ("without_replacement", "winner_take_all"):
        assert torch.equal(restored(x, method, 10), x)
    else:
        assert restored(x, method, 10).isfinite().all()
    assert sampling_variance(method, torch.zeros(50, 4), x, 10) == 0


@pytest.mark.parametrize("method", SAMPLINGS)
def test_what_is_not_finite_is_not_lost(method):
    for number in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(40, 3)
        x[17, 1] = number
        for seed in range(20):
            rows = restored(x, method, 4, seed)
            if number != number or method in ("uniform", "norms"):
                assert rows.isnan().all(1).any()
            else:
                assert torch.equal(rows[17], x[17])
                rows[17] = 0
                assert rows.isfinite().all()


@pytest.mark.parametrize("method", SAMPLINGS)
def test_norms_too_large_for_float32_are_no_infinities(method):
    x = torch.full((40, 3), 1e30)
    assert restored(x, method, 4).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", SAMPLINGS)
def test_codes_have_exactly_the_stated_bytes_in_every_type(method, dtype):
    x = torch.randn(3, 11, 7).to(dtype)
    code = sample_rows(x, method, 5, 1)
    assert code.dtype == torch.uint8 and len(code) == bytes_of_rows(5, 7, dtype) == 5 * (4 + 7 * dtype.itemsize)
    back = restored(x, method, 5, 1)
    assert back.dtype == dtype and back.shape == x.shape and back.stride() == x.stride()
    assert 1 <= back.view(33, 7).bool().any(1).sum() <= 5
    rows, numbers = code[:-20].clone().view(dtype).view(5, 7), code[-20:].clone().view(torch.int32)
    assert (numbers.diff() >= 0).all()
    torch.testing.assert_close(back.view(33, 7), torch.zeros(33, 7, dtype=dtype).index_add_(0, numbers, rows))
    exact = restored(x.double(), method, 5, 1)
    tolerance = {torch.float64: 0, torch.float32: 1e-6}.get(dtype, 1e-2)
    torch.testing.assert_close(back.double(), exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("method", SAMPLINGS)
def test_codes_depend_on_the_seed_and_not_on_threads_or_a_compiler(method, monkeypatch):
    x, threads = torch.randn(5000, 33), torch.get_num_threads()
    code = sample_rows(x, method, 500, 1)
    assert not torch.equal(sample_rows(x, method, 500, 2), code)
    try:
        torch.set_num_threads(3)
        assert torch.equal(sample_rows(x, method, 500, 1), code)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(counter_random, "native", lambda *_: None)
    assert torch.equal(sample_rows(x, method, 500, 1), code)


def test_no_gradient_is_recorded():
    x = torch.randn(10, 6, requires_grad=True)
    assert not any(sample_rows(x, method, 4, 0).requires_grad for method in SAMPLINGS)


def test_what_cannot_be_sampled_is_refused():
    x = torch.randn(10, 6)
    with pytest.raises(ValueError, match="no method of sampling rows is called 'best': give one of uniform, norms"):
        sample_rows(x, "best", 4, 0)
    with pytest.raises(ValueError, match="no method of sampling rows"):
        sampling_variance("", x, x, 4)
    for kept in (0, 11):
        with pytest.raises(ValueError, match=f"{kept} rows kept of 10: there must be 1 to 10"):
            sample_rows(x, "norms", kept, 0)
    with pytest.raises(ValueError, match=r"pass x.contiguous\(\)"):
        sample_rows(x.t(), "norms", 4, 0)
    with pytest.raises(ValueError, match="decode with what it was encoded with"):
        restore_rows(sample_rows(x, "norms", 4, 0), 5, [10, 6], [6, 1], x.dtype)


def test_the_operations_are_registered_as_torch_wants_them():
    x = torch.randn(2, 8, 3)
    for method in SAMPLINGS:
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(sample_rows, (x, method, 5, 1), test_utils=tests)
    torch.library.opcheck(sample_rows, (x, "norms", 5, 1))
    torch.library.opcheck(restore_rows, (sample_rows(x, "norms", 5, 1), 5, [2, 8, 3], [24, 3, 1], x.dtype))
