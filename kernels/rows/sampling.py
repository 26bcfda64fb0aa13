"""Some of a tensor's rows, drawn and weighted so that a product Xᵀ Y with the kept rows is right on average.

X is a tensor seen as (rows, features). Kept: k rows, each times its weight, and its number in 4 bytes. With
n_i = |x_i| and z_i = x_i y_iᵀ, for which |z_i| = |x_i| |y_i| (Frobenius), the expected |error|² of Xᵀ Y = Σ z_i is:

    uniform              (rows Σ |z_i|² - |Σ z_i|²) / k       each draw any row, weight rows / k
    norms                (Σ |z_i|² / p_i - |Σ z_i|²) / k      p_i = n_i / Σ n, weight 1 / (k p_i); the least if the
                                                              |y_i| are alike (Drineas, Kannan and Mahoney, SIAM J.
                                                              Comput. 36, 2006)
    winner_take_all      the same of the rest, k - c for k    the c largest unchanged, the rest by norms, c such that
                                                              Σ_rest n / (k - c) is least ("WTA-CRS", arXiv 2305.15265)
    without_replacement  Σ c_i |z_i / π_i|² - |Σ c_i z_i / π_i|² / Σ c_i

The last takes each row at most once, row i with exactly the probability π_i = min(1, t n_i), Σ π = k, and the weight
1 / π_i: systematic sampling in a random order (Hartley and Rao, Ann. Math. Stat. 33, 1962), after those of probability
1, which are the c largest of winner_take_all. Its variance is exact for equal norms and otherwise the approximation of
Deville and Tillé (J. Stat. Plan. Inference 128, 2005), c_i - c_i² / Σ c = π_i (1 - π_i), within 3 % in the tests.

A row that is not finite is never lost: the last two keep rows of infinite norm as they are, k of them at most; in all
other cases the drawn rows become NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..backend.counter_random import random_words, state_of, uniform
from ..backend.library import define
from ..backend.planned_layouts import laid_out
from ..packing.packed_codes import check_packed
from .tensor_rows import add_rows, as_rows, check_rows, chunks, rows_and_features, take_rows

SAMPLINGS = ("uniform", "norms", "without_replacement", "winner_take_all")
_CHUNK = 1 << 16  # elements whose squares are taken at once

Words = Callable[[int, int], Tensor]


def _check_method(method: str) -> None:
    if method not in SAMPLINGS:
        raise ValueError(f"no method of sampling rows is called {method!r}: give one of {', '.join(SAMPLINGS)}")


def row_norms(x: Tensor) -> Tensor:
    """Return norms of the rows of [stretches, rows, features]: float64 [all rows], so that nothing finite overflows."""
    return torch.cat([part.double().square().sum(2).flatten() for part in chunks(x, _CHUNK)]).sqrt_()


def split_certain(norms: Tensor, method: str, kept_rows: int) -> tuple[Tensor, Tensor]:
    """Return the rows that are kept for certain, and the others, both from the largest norm down."""
    _, order = norms.sort(descending=True, stable=True)
    if method in ("uniform", "norms"):
        return order[:0], order
    largest = norms[order[:kept_rows]]
    tails = norms[order].flip(0).cumsum(0).flip(0)[:kept_rows]
    places = torch.arange(kept_rows, 0, -1, device=norms.device)
    certain = int((places * largest >= tails * (1 - 1e-9)).long().cumprod(0).sum())  # less than a sum's rounding
    return order[:certain], order[certain:]


def choose_rows(norms: Tensor, method: str, kept_rows: int, words: Words) -> tuple[Tensor, Tensor]:
    """Return the rows that are kept and their weights, [..., kept_rows], float64.

    norms: [rows].
    words: a function of a stream and a count that gives random words, int64 [..., count].
    """
    certain, rest = split_certain(norms, method, kept_rows)
    left = kept_rows - len(certain)
    sizes = torch.ones_like(norms) if method == "uniform" else norms[rest]
    total = sizes.sum()
    if method == "without_replacement" and left:
        order = words(0, len(rest)).argsort(dim=-1)
        ends = (sizes * (left / total))[order].cumsum(-1)
        points = uniform(words(1, 1)) + torch.arange(left, device=norms.device)
        drawn = order.gather(-1, torch.searchsorted(ends, points, right=True).clamp_(max=len(rest) - 1))
    else:
        points = (uniform(words(0, left)) * total).clamp_(max=total.nextafter(torch.zeros_like(total)))
        drawn = torch.searchsorted(sizes.cumsum(0), points, right=True).clamp_(max=max(0, len(rest) - 1))
    weights = torch.where(sizes[drawn] == 0, 0, total / (left * sizes[drawn]))
    if method == "uniform":
        weights = weights + 0 * norms.sum()  # NaN if any row is not finite
    weights = torch.where(weights.isfinite(), weights, torch.nan)
    shape = (*drawn.shape[:-1], len(certain))
    return torch.cat([certain.expand(shape), rest[drawn]], -1), torch.cat([norms.new_ones(shape), weights], -1)


def bytes_of_rows(kept_rows: int, features: int, dtype: torch.dtype) -> int:
    """Return the bytes of the code of a number of rows."""
    return kept_rows * (4 + features * dtype.itemsize)


def _sample(
    x: Tensor, method: str, kept_rows: int, seed: int, dim: int = -1, stride: list[int] | None = None
) -> Tensor:
    x = laid_out(x, stride)
    _check_method(method)
    check_rows(x, kept_rows, dim)
    rows = as_rows(x.detach(), dim)
    chosen, weights = choose_rows(
        row_norms(rows), method, kept_rows, lambda stream, n: random_words(state_of(seed, stream), 0, n, x.device)
    )
    chosen, order = chosen.sort(stable=True)
    code = torch.empty(bytes_of_rows(kept_rows, rows.shape[2], x.dtype), dtype=torch.uint8, device=x.device)
    kept, numbers = _parts(code, kept_rows)
    numbers.copy_(chosen.int().view(torch.uint8))
    kept = kept.view(x.dtype).view(kept_rows, rows.shape[2])
    take_rows(rows, chosen, kept)
    kept.mul_(weights[order].to(torch.promote_types(x.dtype, torch.float32))[:, None])
    return code


def _parts(code: Tensor, kept_rows: int) -> tuple[Tensor, Tensor]:
    """Return the bytes of the rows, first since they may be wider, and those of their numbers."""
    return code[: len(code) - 4 * kept_rows], code[len(code) - 4 * kept_rows :]


def _restore(
    code: Tensor, kept_rows: int, size: list[int], stride: list[int], dtype: torch.dtype, dim: int = -1
) -> Tensor:
    _, features = rows_and_features(size, dim)
    check_packed(code, bytes_of_rows(kept_rows, features, dtype))
    x = torch.empty_strided(size, stride, dtype=dtype, device=code.device).zero_()
    kept, numbers = _parts(code, kept_rows)
    # numbers may lie at an address that int32 cannot have, and are copied
    add_rows(as_rows(x, dim), numbers.clone().view(torch.int32), kept.view(dtype).view(kept_rows, features))
    return x


def _spread_of_systematic(inclusion: Tensor) -> Tensor:
    """Return Deville and Tillé's c of inclusion probabilities below 1, by fixed point."""
    own = inclusion * (1 - inclusion)
    if len(own) < 2:
        return torch.zeros_like(own)
    spread = own * (len(own) / (len(own) - 1))
    if own.max() >= own.sum() / 2:  # where the fixed point does not exist
        return spread
    for _ in range(100):
        spread = own + spread.square() / spread.sum()
    return spread


def _variance(method: str, kept_rows: int, x: Tensor, y: Tensor, weighted: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the expected |error|² from norms of rows.

    x, y: norms of rows.
    weighted: |Σ w_i z_i|² for weights w.
    """
    certain, rest = split_certain(x, method, kept_rows)
    left, share = kept_rows - len(certain), torch.zeros_like(x)
    if not left or not x[rest].any():
        return x.new_zeros(())
    if method == "uniform":
        share[rest] = 1 / len(x)
    else:
        share[rest] = x[rest] / x[rest].sum()
    here = share > 0
    if method != "without_replacement":
        return ((x * y)[here].square() / share[here]).sum() / left - weighted(here.to(x.dtype)) / left
    inclusion = left * share[here]
    spread = _spread_of_systematic(inclusion.clamp(max=1))
    if not spread.any():
        return x.new_zeros(())
    factors = torch.zeros_like(x)
    factors[here] = spread / inclusion
    return (spread * ((x * y)[here] / inclusion).square()).sum() - weighted(factors) / spread.sum()


def sampling_variance(method: str, x: Tensor, y: Tensor, kept_rows: int) -> Tensor:
    """Return the expected |error|² of Xᵀ Y from sampled rows of X: float64, a number; x and y with equal rows."""
    _check_method(method)
    x, y = (matrix.reshape(-1, matrix.shape[-1]).double() for matrix in (x, y))
    return _variance(
        method, kept_rows, x.norm(dim=1), y.norm(dim=1), lambda weights: ((x * weights[:, None]).T @ y).square().sum()
    )


def sampling_variance_of_norms(method: str, x_norms: Tensor, y_norms: Tensor, kept_rows: int) -> Tensor:
    """Return the same from norms of rows alone, [rows] each, for rows that are uncorrelated: the z_i are orthogonal."""
    _check_method(method)
    x, y = x_norms.double(), y_norms.double()
    return _variance(method, kept_rows, x, y, lambda weights: (weights * x * y).square().sum())


sample_rows = define(
    "sample_rows(Tensor x, str method, int kept_rows, int seed, int dim=-1, int[]? stride=None) -> Tensor",
    _sample,
    lambda x, method, kept_rows, seed, dim=-1, stride=None: x.new_empty(
        (bytes_of_rows(kept_rows, x.shape[dim], x.dtype),), dtype=torch.uint8
    ),
)
"""x → uint8 [k (4 + features itemsize)]: rows times their weights, then their numbers, which ascend.

method: one of SAMPLINGS.
dim: the dimension of features; x is contiguous, or would be if that dimension came last.
stride: the planned stride of x (`laid_out`).

Raises ValueError unless x is so and has as many rows.
"""

restore_rows = define(
    "restore_rows(Tensor code, int kept_rows, int[] size, int[] stride, ScalarType dtype, int dim=-1) -> Tensor",
    _restore,
    lambda code, kept_rows, size, stride, dtype, dim=-1: torch.empty_strided(
        size, stride, dtype=dtype, device=code.device
    ),
)
"""Returns zeros of a size, stride (x's) and type, with the rows of a code at their places."""
