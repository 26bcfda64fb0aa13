"""Sees a tensor as rows of features: those of a matrix that multiplies them, or the pixels of an image by channels."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor


def rows_and_features(size: list[int], dim: int = -1) -> tuple[int, int]:
    """Return the numbers of rows and features of a tensor with features along `dim`; all its other dimensions are
    rows.
    """
    return prod(size[:dim]) * prod(size[dim:][1:]), size[dim] if size else 0


def has_rows(x: Tensor, dim: int = -1) -> bool:
    """Return whether x can be seen as rows without a copy: contiguous, or contiguous if its features came last."""
    return x.dim() > 0 and (x.is_contiguous() or x.movedim(dim, -1).is_contiguous())


def check_rows(x: Tensor, kept_rows: int, dim: int = -1) -> None:
    """Raise ValueError unless this many rows can be kept of x: a contiguous tensor of floating-point numbers."""
    if not x.is_floating_point() or not has_rows(x, dim):
        message = f"x is {x.dtype} with strides {x.stride()} for shape {tuple(x.shape)}"
        raise ValueError(f"{message}: rows must be of contiguous floating-point numbers; pass x.contiguous()")
    rows, _ = rows_and_features(list(x.shape), dim)
    if not 1 <= kept_rows <= rows:
        raise ValueError(f"{kept_rows} rows kept of {rows}: there must be 1 to {rows}; give another number of rows")


def as_rows(x: Tensor, dim: int = -1) -> Tensor:
    """Return a view of x (for which `has_rows`): [stretches, rows of each, features], in the order of its other
    dimensions.

    There is one stretch if a row's features lie side by side, otherwise one for each place along the dimensions before
    `dim`.
    """
    rows, features = rows_and_features(list(x.shape), dim)
    moved = x.movedim(dim, -1)
    if moved.is_contiguous():
        return moved.view(1, rows, features)
    stretches = prod(x.shape[:dim])
    return x.view(stretches, features, rows // stretches).transpose(1, 2)


def pieces(x: Tensor, start: int, end: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield some rows of `as_rows`, stretch by stretch: a slice of them, counted from the first, and a view of them."""
    length = x.shape[1]
    for place in range(start // length, -(-end // length)):
        first, last = max(start, place * length), min(end, (place + 1) * length)
        yield slice(first - start, last - start), x[place, first - place * length : last - place * length]


def chunks(x: Tensor, elements: int) -> Iterator[Tensor]:
    """Yield all rows of `as_rows` in turn, about `elements` elements at once, at least one row."""
    length, features = x.shape[1:]
    whole = max(1, elements // max(1, length * features))
    part = length if whole > 1 else max(1, elements // max(1, features))
    for first in range(0, len(x), whole):
        for start in range(0, length, part):
            yield x[first : first + whole, start : start + part]


def take_rows(x: Tensor, numbers: Tensor, out: Tensor) -> None:
    """Write the rows of `as_rows` with these numbers, [kept], into [kept, features]."""
    if len(x) == 1:
        torch.index_select(x[0], 0, numbers, out=out)
    else:
        out.copy_(x[_places(x, numbers)])


def add_rows(x: Tensor, numbers: Tensor, kept: Tensor) -> None:
    """Add [kept, features] to the rows of `as_rows` with these numbers; a number that occurs twice counts twice."""
    if len(x) == 1:
        x[0].index_add_(0, numbers, kept)
    else:
        x.index_put_(_places(x, numbers), kept, accumulate=True)


def _places(x: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    numbers = numbers.long()
    return numbers // x.shape[1], numbers % x.shape[1]
