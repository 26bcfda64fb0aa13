"""Which values to keep encoded: a few choices, from what costs nearly nothing to all there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import fsum, inf

from ..problem.encoded_problem import encodable
from ..problem.liveness import Choice
from ..problem.problem import Problem

_HALVINGS = 60
_PRICES = (0.1, 1.0, 4.0)  # times what running all of forward again costs per byte that forward makes


@lru_cache(maxsize=8)
def choices_of(problem: Problem) -> tuple[Choice, ...]:
    """Choices worth planning with, from the fewest values to the most, the empty one left out.

    For each of a few prices (seconds per byte) every value has the encoding for which the seconds of its codec and the
    bytes of its code, at that price, are least, if they are less than its own bytes. Values that are alike are so
    treated alike. Of encodings that are equally good the one with the smallest error is taken. Where the errors of
    approximate encodings would add up to more than `Problem.error_budget`, errors have a price too, the lowest at which
    they do not, and what is left of the budget goes to where it gains most.
    """
    forward = problem.ops[: problem.forward_length]
    made_bytes = sum(problem.values[value].size_bytes for op in forward for value in op.makes)
    usual = fsum(op.seconds for op in forward) / max(made_bytes, 1)
    found = (_cheapest(problem, price * usual) for price in _PRICES)
    return tuple(choice for choice in dict.fromkeys(found) if choice)


@dataclass(frozen=True)
class _Option:
    """A way to keep a value: whole (number -1) or encoded; cost in seconds, bytes priced."""

    number: int
    cost: float
    error: float
    size_bytes: int


def _cheapest(problem: Problem, price: float) -> Choice:
    values = encodable(problem)
    options = [_options(problem, value, price) for value in values]
    taken = _within(options, problem.error_budget)
    return tuple((value, one.number) for value, one in zip(values, taken, strict=True) if one.number >= 0)


def _options(problem: Problem, value: int, price: float) -> list[_Option]:
    """The ways to keep a value, the cheapest first."""
    told = problem.values[value]
    options = [_Option(-1, price * told.size_bytes, 0.0, told.size_bytes)]
    for number, one in enumerate(told.encodings):
        error = one.error if one.fidelity == "approximate" else 0.0
        if one.size_bytes < told.size_bytes and error <= problem.error_budget:
            options.append(_Option(number, one.seconds + price * one.size_bytes, error, one.size_bytes))
    return sorted(options, key=lambda one: (one.cost, one.number >= 0, one.error, one.size_bytes))


def _within(options: Sequence[Sequence[_Option]], error_budget: float) -> list[_Option]:
    """One option of each list, errors within the budget: a Lagrangian relaxation, then what still fits.

    Of a multiple-choice knapsack (Sinha and Zoltners 1979) this is at most one exchange from the optimum of its
    relaxation.
    """
    taken = [several[0] for several in options]
    if fsum(one.error for one in taken) <= error_budget:
        return taken

    def at_price(error_price: float) -> list[_Option]:
        return [min(several, key=lambda one: one.cost + error_price * one.error) for several in options]

    low, high = 0.0, 1.0
    while fsum(one.error for one in at_price(high)) > error_budget and high < inf:
        low, high = high, high * 16
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fsum(one.error for one in at_price(middle)) > error_budget else (low, middle)
    taken = at_price(high)
    left = error_budget - fsum(one.error for one in taken)
    exchanges = [
        ((now.cost - one.cost) / (one.error - now.error), place, one)
        for place, (several, now) in enumerate(zip(options, taken, strict=True))
        for one in several
        if one.cost < now.cost and one.error > now.error
    ]
    for _, place, one in sorted(exchanges, key=lambda exchange: -exchange[0]):
        more = one.error - taken[place].error
        if more <= left and one.cost < taken[place].cost:
            taken[place] = one
            left -= more
    return taken


def choice_text(problem: Problem, choice: Choice) -> str:
    """A choice in words."""
    names = sorted({problem.values[value].encodings[number].name for value, number in choice})
    return f"{len(choice)} values encoded ({', '.join(names)})"
