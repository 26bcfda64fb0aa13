"""Sketches: Sᵀ X of few rows kept instead of X, for a product Xᵀ Y that is right on average.

X is a tensor seen as (rows, features). Kept: k / rows of its bytes. S (rows × k) is never stored but drawn
again from the seed, and E[S Sᵀ] = 1, so that (S Sᵀ X)ᵀ Y = (Sᵀ X)ᵀ (Sᵀ Y) has the mean Xᵀ Y: "Memory-Efficient
Backpropagation through Large Linear Layers" (arXiv 2201.13195). With |·| Frobenius' norm, x_i and y_i rows,
P = |X|² |Y|², Q = |Xᵀ Y|² and R = Σ |x_i|² |y_i|², the expected |error|² of Xᵀ Y is

    gaussian     (P + Q) / k                               (there with the wrong sign of Q)
    rademacher   (P + Q - 2 R) / k                         entries ± 1 / √k
    hadamard     (P + Q - 2 R) / k · (M - k) / (M - 1)     rows padded to M, a power of two; signs, the Hadamard
                                                           transform, k of M rows without replacement, times √(M / k)
    dct          see `sketch_variance`                     the same by the cosine transform, without padding

where for the last two E |Σ_j u_j v_jᵀ|² over the rows u_j, v_j of the transformed X and Y is found from
E[d_a d_b d_c d_e] = δ_ab δ_ce + δ_ac δ_be + δ_ae δ_bc - 2 δ_abce of the signs d.

Drawn numbers do not depend on the number of threads; products are torch's own and round as torch does.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import pi, sqrt

import torch
from torch import Tensor

from ..backend.counter_random import random_words, state_of
from ..backend.library import define
from ..backend.planned_layouts import laid_out
from ..quantize.hadamard import signs_at
from .tensor_rows import as_rows, check_rows, pieces, rows_and_features

DENSE = ("gaussian", "rademacher")
"""The sketches by a matrix; the others are transforms."""
SKETCHES = (*DENSE, "hadamard", "dct")
_CHUNK = 1 << 16  # elements of S, or of what is transformed, at once
_CHOICE = 2  # the stream of a seed that chooses rows


def _check_kind(kind: str) -> None:
    if kind not in SKETCHES:
        raise ValueError(f"no kind of sketch is called {kind!r}: give one of {', '.join(SKETCHES)}")


def normal_numbers(state: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return normally distributed numbers, `start` (even) and following: float32 [count], two to a word (Box and
    Muller).
    """
    words = random_words(state, start // 2, -(-count // 2), device)
    first = words.bitwise_and(0xFFFFFFFF).add_(1).double().mul_(2.0**-32).float()
    second = (words >> 32).bitwise_and_(0xFFFFFFFF).float().mul_(2 * pi * 2.0**-32)
    radius = first.log_().mul_(-2).sqrt_()
    return torch.stack([radius * second.cos(), radius * second.sin()], 1).view(-1)[:count]


def drawn_entries(kind: str, state: int, start: int, count: int, device: torch.device) -> Tensor:
    """Return entries of √k S, in the order of its rows, `start` (a multiple of 64) and following: [count]."""
    if kind == "gaussian":
        return normal_numbers(state, start, count, device)
    return signs_at(state, start, count, device)


def _matrices(kind: str, seed: int, rows: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield √k S for k the length of `like`, of its type, in stretches of rows."""
    kept, state = len(like), state_of(seed)
    step = max(64, _CHUNK // kept // 64 * 64)
    for start in range(0, rows, step):
        end = min(rows, start + step)
        entries = drawn_entries(kind, state, start * kept, (end - start) * kept, like.device)
        yield slice(start, end), entries.view(-1, kept).to(like.dtype)


def _transformed(kind: str, x: Tensor, transposed: bool) -> Tensor:
    """Return √M times the orthonormal transform of the columns of [M, columns], or its transpose. May write over x."""
    rows, columns = x.shape
    if kind == "hadamard":
        for k in range(rows.bit_length() - 1):
            a, b = x.view(-1, 2, 2**k, columns).unbind(1)
            difference = a - b
            a += b
            b.copy_(difference)
        return x
    places = torch.arange(rows, device=x.device, dtype=x.dtype)[:, None]
    rotations = torch.polar(torch.ones_like(places), places * (pi / (2 * rows)))
    if not transposed:
        transformed = (torch.fft.rfft(x, 2 * rows, dim=0)[:rows] * rotations.conj()).real * sqrt(2)
        transformed[0] *= sqrt(0.5)
        return transformed
    spectrum = rotations * x * sqrt(0.5)  # irfft counts all but the first twice
    spectrum[0] = x[0]
    return torch.fft.irfft(torch.nn.functional.pad(spectrum, (0, 0, 0, 1)), 2 * rows, dim=0, norm="forward")[:rows]


def _transform_size(kind: str, rows: int) -> int:
    return 1 << (rows - 1).bit_length() if kind == "hadamard" else rows


def _drawn_rows(kind: str, seed: int, rows: int, kept: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sign of each row, as a column of like's type, and the kept rows of the transform."""
    size = _transform_size(kind, rows)
    sign = signs_at(state_of(seed), 0, rows, like.device).to(like.dtype)[:, None]
    words = random_words(state_of(seed, _CHOICE), 0, size, like.device)
    return sign, words.argsort(stable=True)[:kept]


def _column_chunks(kind: str, rows: int, features: int) -> Iterator[slice]:
    step = max(1, _CHUNK // _transform_size(kind, rows))
    return (slice(start, min(features, start + step)) for start in range(0, features, step))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which products of a type are summed."""
    return torch.promote_types(dtype, torch.float32)


def _sketch(x: Tensor, kind: str, kept_rows: int, seed: int, dim: int = -1, stride: list[int] | None = None) -> Tensor:
    x = laid_out(x, stride)
    _check_kind(kind)
    check_rows(x, kept_rows, dim)
    x = as_rows(x.detach(), dim)
    rows, features = x.shape[0] * x.shape[1], x.shape[2]
    code = torch.zeros(kept_rows, features, dtype=_wide(x.dtype), device=x.device)
    if kind in DENSE:
        for here, matrix in _matrices(kind, seed, rows, code):
            for part, values in pieces(x, here.start, here.stop):
                code.addmm_(matrix[part].t(), values.to(code.dtype))
    else:
        sign, chosen = _drawn_rows(kind, seed, rows, kept_rows, code)
        for columns in _column_chunks(kind, rows, features):
            values = x[:, :, columns]
            padded = code.new_zeros(_transform_size(kind, rows), values.shape[2])
            torch.mul(values, sign.view(*x.shape[:2], 1), out=padded[:rows].view(values.shape))
            code[:, columns] = _transformed(kind, padded, False)[chosen]
    return code.mul_(1 / sqrt(kept_rows)).to(x.dtype)


def _unsketch(
    code: Tensor, kind: str, seed: int, size: list[int], stride: list[int], dtype: torch.dtype, dim: int = -1
) -> Tensor:
    _check_kind(kind)
    rows, features = rows_and_features(size, dim)
    if code.dim() != 2 or code.shape[1] != features or not 1 <= len(code) <= rows:
        message = f"the sketch has the shape {tuple(code.shape)}"
        raise ValueError(f"{message}: of {rows} rows of {features} it has 1 to {rows}; unsketch to the size sketched")
    whole = torch.empty_strided(size, stride, dtype=dtype, device=code.device)
    x, wide = as_rows(whole, dim), code.detach().to(_wide(code.dtype)) * (1 / sqrt(len(code)))
    if kind in DENSE:
        for here, matrix in _matrices(kind, seed, rows, wide):
            product = matrix @ wide
            for part, values in pieces(x, here.start, here.stop):
                values.copy_(product[part])
    else:
        sign, chosen = _drawn_rows(kind, seed, rows, len(code), wide)
        for columns in _column_chunks(kind, rows, features):
            spread = wide.new_zeros(_transform_size(kind, rows), columns.stop - columns.start)
            spread[chosen] = wide[:, columns]
            restored = _transformed(kind, spread, True)[:rows] * sign
            x[:, :, columns] = restored.view(*x.shape[:2], restored.shape[1])
    return whole


def sketch_variance(kind: str, x: Tensor, y: Tensor, kept_rows: int) -> Tensor:
    """Return the expected |error|² of Xᵀ Y from a sketch: float64, a number; x and y with equal rows.

    dct: c_ji² has over its N rows j the products Σ_j c_ji² c_jl² = (N - 1 + N/2 ([i = l] + [i + l = N - 1])) / N², in
        the
    place of the Hadamard matrix's 1 / N.
    """
    _check_kind(kind)
    x, y = (matrix.reshape(-1, matrix.shape[-1]).double() for matrix in (x, y))
    squares, others, product = x.square().sum(1), y.square().sum(1), (x.T @ y).square().sum()
    whole, rowwise = squares.sum() * others.sum(), (squares * others).sum()
    if kind == "gaussian":
        return (whole + product) / kept_rows
    if kind == "rademacher":
        return (whole + product - 2 * rowwise) / kept_rows
    size = _transform_size(kind, len(x))
    if size == 1:
        return torch.zeros_like(whole)
    if kind == "hadamard":
        mean = (whole + 2 * product - 2 * rowwise) / size
    else:
        mirrored = (squares * others.flip(0)).sum() + 2 * ((x * x.flip(0)).sum(1) * (y * y.flip(0)).sum(1)).sum()
        twice = torch.full_like(squares, 1.5 * size - 1)
        twice[size // 2] += size / 2 * (size % 2)  # the middle row is its own mirror image
        pairs = (size - 1) * (whole + 2 * product) + size / 2 * (3 * rowwise + mirrored)
        mean = (pairs - 2 * (twice * squares * others).sum()) / size**2
    return size * (size - kept_rows) / (kept_rows * (size - 1)) * (mean - product / size)


sketch = define(
    "sketch(Tensor x, str kind, int kept_rows, int seed, int dim=-1, int[]? stride=None) -> Tensor",
    _sketch,
    lambda x, kind, kept_rows, seed, dim=-1, stride=None: x.new_empty((kept_rows, x.shape[dim])),
)
"""Sᵀ X, [kept_rows, features], of x's type.

kind: one of SKETCHES.
dim: the dimension of features; x is contiguous, or would be if that dimension came last.
stride: the planned stride of x (`laid_out`).

Raises ValueError unless x is so and has as many rows. A number that is not finite spoils its feature's whole column.
"""

unsketch = define(
    "unsketch(Tensor code, str kind, int seed, int[] size, int[] stride, ScalarType dtype, int dim=-1) -> Tensor",
    _unsketch,
    lambda code, kind, seed, size, stride, dtype, dim=-1: torch.empty_strided(
        size, stride, dtype=dtype, device=code.device
    ),
)
"""S (Sᵀ X), of x's size, stride and type, with the kind, seed and dimension of the sketch."""
