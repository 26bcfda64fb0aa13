"""What a pass over links may keep of each, from a little to nearly everything: one way per kind of link and level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf

import numpy as np

from .chain import Chain, LinkSchedule


def levels_of(chain: Chain, most: int) -> tuple[tuple[int, ...], ...]:
    """At most about `most` levels: for each the number of every link's way.

    A level is the cheapest way of each kind at one price per byte kept, where what a way costs is its seconds and those
    of making again what the next link reads. Prices are those at which some kind's cheapest way changes. A level that
    keeps nothing is that of a plain pass, and left out.
    """
    kinds = {link.kind: link.ways for link in chain.links}
    prices = sorted({price for ways in kinds.values() for price in _prices(ways)})
    if not prices:
        return ()
    chosen = sorted(set(np.linspace(0, len(prices) - 1, most).round().astype(int)))
    levels: dict[tuple[int, ...], None] = {}
    for price in (prices[0] / 2, *(1.0001 * prices[at] for at in chosen)):
        best = {kind: _cheapest(ways, price) for kind, ways in kinds.items()}
        level = tuple(best[link.kind] for link in chain.links)
        if any(link.ways[way].kept_bytes for link, way in zip(chain.links, level, strict=True)):
            levels[level] = None
    return tuple(levels)


def _seconds(way: LinkSchedule) -> float:
    return way.seconds + way.remake_seconds


def _cheapest(ways: Sequence[LinkSchedule], price: float) -> int:
    """The number of the way that is best at a price (seconds per byte), the first of equals."""
    return min(range(len(ways)), key=lambda way: (_seconds(ways[way]) + price * ways[way].kept_bytes, way))


def _prices(ways: Sequence[LinkSchedule]) -> list[float]:
    """The prices at which the cheapest way changes: the slopes of the lower convex hull of (bytes kept, seconds)."""
    hull = lower_hull((way.kept_bytes, _seconds(way), 0) for way in ways if _seconds(way) < inf)
    return [(a[1] - b[1]) / (b[0] - a[0]) for a, b in pairwise(hull) if a[1] > b[1]]


def lower_hull(points: Iterable[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """Of (bytes, seconds, number) the vertices of the lower convex hull, from the fewest bytes to the most."""
    hull: list[tuple[int, float, int]] = []
    for point in sorted(points):
        if hull and point[0] == hull[-1][0]:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _is_above(left: tuple[int, float, int], middle: tuple[int, float, int], right: tuple[int, float, int]) -> bool:
    """Whether the middle point lies on or above the line between the others."""
    return (middle[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (middle[0] - left[0])
