"""Sketches: no bias, the variance of their formulas, and S never stored."""

import pytest
import torch
from lowtide.kernels.backend import counter_random
from lowtide.kernels.backend.counter_random import state_of, words_plainly
from lowtide.kernels.rows import sketches
from lowtide.kernels.rows.sketches import SKETCHES, drawn_entries, sketch, sketch_variance, unsketch

CPU = torch.device("cpu")
ROWS, KEPT, DRAWS = 24, 6, 20_000


def rows_of(kind: str, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """X and Y with independent rows, a few large ones, or rows much like each other; float64."""
    generator = torch.Generator().manual_seed(rows)
    x, y = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) for columns in (5, 3))
    if kind == "heavy":
        scale = torch.rand(rows, 1, generator=generator, dtype=torch.float64).pow(-0.7)
        return x * scale, y * scale.flip(0).sqrt()
    if kind == "correlated":
        return x * 0.3 + 1, 0.4 * y + 0.7 * x[:, :3] + 0.5
    return x, y


def entries(kind: str, seed: int, rows: int, kept: int) -> torch.Tensor:
    """S of a sketch, [rows, kept]: what it makes of the unit vectors."""
    return sketch(torch.eye(rows, dtype=torch.float64), kind, kept, seed).T


def many_matrices(kind: str, rows: int) -> torch.Tensor:
    """S of DRAWS seeds at once, [draws, rows, kept], made as the operation makes it."""
    if kind in ("gaussian", "rademacher"):
        drawn = drawn_entries(kind, state_of(0), 0, DRAWS * rows * KEPT, CPU)
        return drawn.double().view(DRAWS, rows, KEPT) / KEPT**0.5
    size = (32 if rows > 16 else 16) if kind == "hadamard" else rows
    states = [[state_of(seed, stream) for stream in (0, 2)] for seed in range(DRAWS)]
    states = torch.tensor([[state - 2**64 * (state >= 2**63) for state in pair] for pair in states])
    bits = words_plainly(states[:, :1], torch.zeros(1, dtype=torch.int64)) >> torch.arange(rows)
    chosen = words_plainly(states[:, 1:], torch.arange(size)).argsort(dim=1, stable=True)[:, :KEPT]
    transform = sketches._transformed(kind, torch.eye(size, dtype=torch.float64), False)[:, :rows]
    return transform[chosen].transpose(1, 2) * (1.0 - 2 * (bits & 1))[:, :, None] / KEPT**0.5


@pytest.mark.parametrize("rows", [ROWS, 15])
@pytest.mark.parametrize("kind", SKETCHES)
def test_products_are_unbiased_with_the_variance_of_the_formula(kind, rows):
    matrices = many_matrices(kind, rows)
    if kind not in ("gaussian", "rademacher"):
        for seed in (0, 1, 77, DRAWS - 1):  # they are the operation's
            torch.testing.assert_close(entries(kind, seed, rows, KEPT), matrices[seed])
    for name in ("independent", "heavy", "correlated"):
        x, y = rows_of(name, rows)
        deviations = (x.T @ matrices) @ (matrices.mT @ y) - x.T @ y
        variance = sketch_variance(kind, x, y, KEPT)
        assert deviations.square().sum((1, 2)).mean() / variance == pytest.approx(1, rel=0.03)
        assert deviations.mean(0).square().sum() < 2.5 * variance / DRAWS


@pytest.mark.parametrize("kind", SKETCHES)
def test_the_operation_itself_has_that_mean_and_variance_over_seeds(kind):
    x, y = rows_of("correlated")
    both = torch.cat([x, y], 1)
    codes = torch.stack([sketch(both, kind, KEPT, seed) for seed in range(2000)])
    deviations = codes[:, :, :5].mT @ codes[:, :, 5:] - x.T @ y
    variance = sketch_variance(kind, x, y, KEPT)
    assert deviations.square().sum((1, 2)).mean() / variance == pytest.approx(1, rel=0.12)
    assert deviations.mean(0).square().sum() < 4 * variance / 2000


def test_entries_of_the_random_matrices_are_as_specified():
    for kind in ("gaussian", "rademacher"):
        drawn = drawn_entries(kind, state_of(9), 0, ROWS * KEPT, CPU).double().view(ROWS, KEPT)
        torch.testing.assert_close(entries(kind, 9, ROWS, KEPT), drawn / KEPT**0.5)
    normal = drawn_entries("gaussian", state_of(1), 0, 1 << 20, CPU).double()
    moments = [normal.pow(power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.03)
    assert normal.abs().max() < 6.7


@pytest.mark.parametrize("kind", SKETCHES)
@pytest.mark.parametrize(("rows", "kept"), [(1, 1), (64, 64), (100, 7), (130, 33)])
def test_unsketching_is_by_the_same_matrix(kind, rows, kept, monkeypatch):
    monkeypatch.setattr(sketches, "_CHUNK", 500)
    matrix = entries(kind, 3, rows, kept)
    x = torch.randn(rows, 9, dtype=torch.float64)
    code = sketch(x, kind, kept, 3)
    assert code.shape == (kept, 9)
    torch.testing.assert_close(code, matrix.T @ x)
    torch.testing.assert_close(unsketch(code, kind, 3, [rows, 9], [9, 1], x.dtype), matrix @ code)
    assert unsketch(sketch(x[:, :0].contiguous(), kind, kept, 3), kind, 3, [rows, 0], [1, 1], x.dtype).shape == (
        rows,
        0,
    )
    monkeypatch.undo()
    torch.testing.assert_close(sketch(x, kind, kept, 3), code)


@pytest.mark.parametrize("kind", ["hadamard", "dct"])
def test_all_rows_of_an_orthonormal_transform_give_everything_back(kind):
    x = torch.randn(4, 8, 5)
    restored = unsketch(sketch(x, kind, 32, 4), kind, 4, [4, 8, 5], [40, 5, 1], x.dtype)
    torch.testing.assert_close(restored, x)
    assert sketch_variance(kind, x, x, 32) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("kind", SKETCHES)
def test_the_dct_and_hadamard_matrices_are_orthonormal_and_signs_only_signs(kind):
    matrix = entries(kind, 6, 32, 32)
    if kind in ("hadamard", "dct"):
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(32, dtype=torch.float64))
    if kind in ("hadamard", "rademacher"):
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, 32**-0.5))


@pytest.mark.parametrize("kind", SKETCHES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_kept_in_their_own(kind, dtype):
    x = torch.randn(3, 20, 7).to(dtype)
    code = sketch(x, kind, 12, 8)
    back = unsketch(code, kind, 8, [3, 20, 7], [140, 7, 1], dtype)
    assert code.dtype == back.dtype == dtype
    exact = sketch(x.double(), kind, 12, 8)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
    torch.testing.assert_close(code.double(), exact, rtol=tolerance, atol=tolerance)
    exact = unsketch(code.double(), kind, 8, [3, 20, 7], [140, 7, 1], torch.float64)
    torch.testing.assert_close(back.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", SKETCHES)
@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_what_is_not_finite_is_not_lost(kind, number):
    x = torch.randn(40, 3)
    x[17, 1] = number
    back = unsketch(sketch(x, kind, 8, 2), kind, 2, [40, 3], [3, 1], x.dtype)
    assert not back[:, 1].isfinite().any()
    if kind != "dct":
        assert back[:, ::2].isfinite().all()


@pytest.mark.parametrize("kind", SKETCHES)
def test_without_c_the_sketch_is_the_same_and_another_seed_gives_another(kind, monkeypatch):
    x = torch.randn(300, 11)
    code = sketch(x, kind, 16, -5)
    assert not torch.allclose(sketch(x, kind, 16, -6), code)
    monkeypatch.setattr(counter_random, "native", lambda *_: None)
    assert torch.equal(sketch(x, kind, 16, -5), code)


@pytest.mark.parametrize("kind", SKETCHES)
def test_more_threads_draw_the_same_numbers(kind):
    x, threads = torch.randn(500, 70), torch.get_num_threads()
    code = sketch(x, kind, 100, 1)
    try:
        torch.set_num_threads(3)
        torch.testing.assert_close(sketch(x, kind, 100, 1), code)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", SKETCHES)
def test_tensors_that_require_gradients_are_sketched_as_others(kind):
    x = torch.randn(10, 6, requires_grad=True)
    assert torch.equal(sketch(x, kind, 4, 0), sketch(x.detach(), kind, 4, 0))
    restored = unsketch(x[:4], kind, 0, [10, 6], [6, 1], x.dtype)
    assert torch.equal(restored, unsketch(x[:4].detach(), kind, 0, [10, 6], [6, 1], x.dtype))


def test_what_cannot_be_sketched_is_refused():
    x = torch.randn(10, 6)
    with pytest.raises(ValueError, match="no kind of sketch is called 'sparse': give one of gaussian, rademacher"):
        sketch(x, "sparse", 4, 0)
    for kept in (0, 11):
        with pytest.raises(ValueError, match=f"{kept} rows kept of 10: there must be 1 to 10"):
            sketch(x, "gaussian", kept, 0)
    for unfit in (x.t(), x.long(), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"pass x.contiguous\(\)"):
            sketch(unfit, "dct", 1, 0)
    with pytest.raises(ValueError, match="unsketch to the size sketched"):
        unsketch(sketch(x, "dct", 4, 0), "dct", 0, [10, 5], [5, 1], x.dtype)
    with pytest.raises(ValueError, match="no kind of sketch"):
        sketch_variance("", x, x, 4)


def test_the_operations_are_registered_as_torch_wants_them():
    x = torch.randn(2, 8, 3)
    for kind in SKETCHES:
        torch.library.opcheck(sketch, (x, kind, 5, 1), test_utils=("test_schema", "test_faketensor"))
        arguments = (sketch(x, kind, 5, 1), kind, 1, [2, 8, 3], [24, 3, 1], torch.bfloat16)
        torch.library.opcheck(unsketch, arguments, test_utils=("test_schema", "test_faketensor"))
    torch.library.opcheck(sketch, (x, "hadamard", 5, 1))
