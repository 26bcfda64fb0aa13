"""Which values to keep encoded: a few choices, from what costs nearly nothing to all there is."""

from __future__ import annotations

from functools import lru_cache
from math import fsum

from .liveness import Choice
from .problem import Problem
from .recoding import encodable

_PRICES = (0.1, 1.0, 4.0)  # times what running all of forward again costs per byte that forward makes


@lru_cache(maxsize=8)
def choices_of(problem: Problem) -> tuple[Choice, ...]:
    """Choices worth planning with, from the fewest values to the most, the empty one left out.

    For each of a few prices (seconds per byte) every value has the encoding for which the seconds of its codec and the
    bytes of its code, at that price, are least, if they are less than its own bytes. Values that are alike are so
    treated alike. Of encodings that are equally good the one with the smallest error is taken.
    """
    forward = problem.ops[: problem.forward_length]
    made_bytes = sum(problem.values[value].size_bytes for op in forward for value in op.makes)
    usual = fsum(op.seconds for op in forward) / max(made_bytes, 1)
    found = (_cheapest(problem, price * usual) for price in _PRICES)
    return tuple(choice for choice in dict.fromkeys(found) if choice)


def _cheapest(problem: Problem, price: float) -> Choice:
    choice = []
    for value in encodable(problem):
        told = problem.values[value]
        costs = [(one.seconds + price * one.size_bytes, one.error, one.size_bytes) for one in told.encodings]
        number = min(range(len(costs)), key=costs.__getitem__)
        if costs[number][0] < price * told.size_bytes and costs[number][2] < told.size_bytes:
            choice.append((value, number))
    return tuple(choice)


def told_choice(problem: Problem, choice: Choice) -> str:
    """A choice in words."""
    names = sorted({problem.values[value].encodings[number].name for value, number in choice})
    return f"{len(choice)} values encoded ({', '.join(names)})"
