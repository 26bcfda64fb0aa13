"""Nodes from which GELU, tanh-GELU, SiLU and Mish are inverted, and these functions with their first four derivatives.

Each is x g(x) with a gate g, whose derivatives are known. Nodes are inverted in float64. Near the minimum y_0 the
inverse is as sqrt(y - y_0), hence nodes at y_0 + (k / 256)^2, the first of them the minimum itself, where the series
has no linear term and nothing cancels; towards y = -0, nodes at 32 places to the octave, since x then goes as a
logarithm of y.

Sources: Phi' = phi and phi' = -x phi for GELU; sigma' = sigma (1 - sigma) for the rest, as tanh-GELU is x sigma(2 c
(x + a x^3)) and Mish x tanh(log(1 + e^x)) = x sigma(x + log(1 + e^x / 2)), from tanh(log u) = (u^2 - 1) / (u^2 + 1);
Faa di Bruno's formula for what stands inside sigma.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

INVERTED = ("gelu", "gelu_tanh", "silu", "mish")

# The C of `inverses.py` has these numbers too, but for FARTHEST, which it is told.
FARTHEST = 4.9  # sqrt(y - y_0) from which on the derivative is 1, to within 2e-9
LOWEST, _HIGHEST = -60, -3  # octaves: |y| from 2^LOWEST to 2^_HIGHEST left of the minimum is looked up by them
_STEPS = 256  # nodes to a unit of sqrt(y - y_0)
_OCTAVE = 32  # nodes to an octave of y, near 0


def _sigmoid_of(inner: tuple[Tensor, ...]) -> list[Tensor]:
    """sigma(v) and its first four derivatives, from v and its: Faa di Bruno's formula."""
    v, v1, v2, v3, v4 = inner
    s = torch.sigmoid(v)
    s1 = s * torch.sigmoid(-v)
    s2, s3 = s1 * (1 - 2 * s), s1 * (1 - 6 * s1)
    s4 = s2 * (1 - 12 * s1)
    third = s3 * v1**3 + 3 * s2 * v1 * v2 + s1 * v3
    fourth = s4 * v1**4 + 6 * s3 * v1**2 * v2 + s2 * (3 * v2**2 + 4 * v1 * v3) + s1 * v4
    return [s, s1 * v1, s2 * v1**2 + s1 * v2, third, fourth]


def _gate(kind: str, x: Tensor) -> list[Tensor]:
    """The gate g of an activation x g(x), and its first four derivatives."""
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    if kind == "gelu":
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        cumulative = torch.special.erfc(x * -math.sqrt(0.5)) / 2
        return [cumulative, density, -x * density, (x * x - 1) * density, (3 * x - x**3) * density]
    if kind == "gelu_tanh":
        c, a = 2 * math.sqrt(2 / math.pi), 0.044715
        return _sigmoid_of((c * (x + a * x**3), c * (1 + 3 * a * x * x), 6 * c * a * x, 6 * c * a * one, zero))
    if kind == "silu":
        return _sigmoid_of((x, one, zero, zero, zero))
    q = torch.sigmoid(x - math.log(2))
    p = q * (1 - q)
    inner = x + torch.nn.functional.softplus(x - math.log(2))
    return _sigmoid_of((inner, 1 + q, p, p * (1 - 2 * q), p * (1 - 6 * p)))


def function_and_derivatives(kind: str, x: Tensor) -> list[Tensor]:
    """An activation and its first four derivatives: (x g)^(n) = x g^(n) + n g^(n - 1)."""
    gate = _gate(kind, x)
    return [x * gate[0]] + [x * gate[n] + n * gate[n - 1] for n in range(1, 5)]


class Table(NamedTuple):
    """The nodes from which an activation is inverted, all in float64.

    x: where it attains its minimum. y: the minimum. at: [nodes, 5], each node's x and the first four derivatives there;
    the first nodes lie right of the minimum, those from `left` on left of it, and those from `tail` on towards y = -0.
    singles: the derivatives in float32, [nodes, 4], as the C reads them.
    """

    x: float
    y: float
    at: Tensor
    left: int
    tail: int
    singles: Tensor


@cache
def table(kind: str) -> Table:
    """Made once for each kind of activation, in a tenth of a second, and held: some 3200 nodes, 180 KB."""
    with torch.device("cpu"):
        return _tabulate(kind)


def _tabulate(kind: str) -> Table:
    lowest = _minimum(kind)
    minimum = function_and_derivatives(kind, torch.tensor(lowest, dtype=torch.float64))[0].item()
    right = minimum + (torch.arange(int(FARTHEST * _STEPS) + 3, dtype=torch.float64) / _STEPS) ** 2
    near = int(math.sqrt(-(2.0**_HIGHEST) - minimum) * _STEPS) + 3
    octaves = torch.arange(LOWEST, _HIGHEST, dtype=torch.float64)
    parts = torch.arange(_OCTAVE, dtype=torch.float64) / _OCTAVE + 1
    last = torch.tensor([2.0**_HIGHEST], dtype=torch.float64)
    tail = -torch.cat([(torch.exp2(octaves)[:, None] * parts).flatten(), last])
    y = torch.cat([right, right[:near], tail])
    x = _inverted(kind, y, torch.arange(len(y)) >= len(right), lowest)
    x[0] = x[len(right)] = lowest
    at = torch.stack([x, *function_and_derivatives(kind, x)[1:]], 1)
    at[0, 1] = at[len(right), 1] = 0
    return Table(lowest, minimum, at, len(right), len(right) + near, at[:, 1:].float().contiguous())


def _minimum(kind: str) -> float:
    """Where the derivative is 0."""
    low, high = torch.tensor(-3.0, dtype=torch.float64), torch.tensor(-0.3, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function_and_derivatives(kind, middle)[1] < 0 else (low, middle)
    return low.item()


def _inverted(kind: str, y: Tensor, left: Tensor, lowest: float) -> Tensor:
    """The x of each y left or right of the minimum: f rises with x right of it, and with -x left of it."""
    inner, outer = torch.full_like(y, lowest), torch.where(left, -60.0, 30.0).double()
    for _ in range(36):
        middle = (inner + outer) / 2
        short = function_and_derivatives(kind, middle)[0] < y
        inner, outer = torch.where(short, middle, inner), torch.where(short, outer, middle)
    x = (inner + outer) / 2
    for _ in range(2):
        value, there = function_and_derivatives(kind, x)[:2]
        x = x - (value - y) / there
    return x


def nearest(y: Tensor, right: Tensor, nodes: Table) -> tuple[Tensor, Tensor]:
    """The row of the node nearest to each y, and y less what it is there; right: on which side of the minimum."""
    excess = (y - nodes.y).clamp_min_(0)
    step = (excess.sqrt().clamp_max_(FARTHEST) * _STEPS).round_()
    held = y.abs().clamp(2.0**LOWEST, 2.0**_HIGHEST)
    mantissa, exponent = torch.frexp(held)
    place = ((2 * mantissa - 1) * _OCTAVE).round_()
    node = torch.ldexp(1 + place / _OCTAVE, exponent - 1)
    far_left = ~right & (y.abs() < 2.0**_HIGHEST)
    row = torch.where(right, step, step + nodes.left)
    row = torch.where(far_left, nodes.tail + (exponent - 1 - LOWEST) * _OCTAVE + place, row)
    # not a number: any row will do
    return row.nan_to_num(0).long(), torch.where(far_left, node - held, excess - (step / _STEPS) ** 2)
