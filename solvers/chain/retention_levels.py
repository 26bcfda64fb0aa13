"""Levels of retention of a sweep over links, from few bytes kept to many: one schedule per kind of link and level."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf

import numpy as np

from .chain import Chain, LinkSchedule


def levels_of(chain: Chain, most: int) -> tuple[tuple[int, ...], ...]:
    """Return about `most` levels at most: for each the number of every link's schedule.

    A level is the cheapest schedule of each kind at one price per byte kept. A schedule costs its seconds and those of
    recomputing the values that the next link reads. Prices are those at which some kind's cheapest schedule changes. A
    level that keeps nothing equals a plain sweep, and is left out.
    """
    kinds = {link.kind: link.schedules for link in chain.links}
    prices = sorted({price for schedules in kinds.values() for price in _prices(schedules)})
    if not prices:
        return ()
    chosen = sorted(set(np.linspace(0, len(prices) - 1, most).round().astype(int)))
    levels: dict[tuple[int, ...], None] = {}
    for price in (prices[0] / 2, *(1.0001 * prices[at] for at in chosen)):
        best = {kind: _cheapest(schedules, price) for kind, schedules in kinds.items()}
        level = tuple(best[link.kind] for link in chain.links)
        if any(link.schedules[schedule].kept_bytes for link, schedule in zip(chain.links, level, strict=True)):
            levels[level] = None
    return tuple(levels)


def _seconds(schedule: LinkSchedule) -> float:
    return schedule.seconds + schedule.recompute_seconds


def _cheapest(schedules: Sequence[LinkSchedule], price: float) -> int:
    """Return the number of the schedule that is best at a price (seconds per byte), the first of equals."""
    return min(
        range(len(schedules)),
        key=lambda schedule: (_seconds(schedules[schedule]) + price * schedules[schedule].kept_bytes, schedule),
    )


def _prices(schedules: Sequence[LinkSchedule]) -> list[float]:
    """Return the prices at which the cheapest schedule changes: slopes of the lower hull of (bytes kept, seconds)."""
    hull = lower_hull(
        (schedule.kept_bytes, _seconds(schedule), 0) for schedule in schedules if _seconds(schedule) < inf
    )
    return [(a[1] - b[1]) / (b[0] - a[0]) for a, b in pairwise(hull) if a[1] > b[1]]


def lower_hull(points: Iterable[tuple[int, float, int]]) -> list[tuple[int, float, int]]:
    """Return the vertices of the lower convex hull of (bytes, seconds, number), from the fewest bytes to the most."""
    hull: list[tuple[int, float, int]] = []
    for point in sorted(points):
        if hull and point[0] == hull[-1][0]:
            continue
        while len(hull) > 1 and _is_above(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _is_above(left: tuple[int, float, int], middle: tuple[int, float, int], right: tuple[int, float, int]) -> bool:
    """Return whether the middle point lies on or above the line between the others."""
    return (middle[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (middle[0] - left[0])
