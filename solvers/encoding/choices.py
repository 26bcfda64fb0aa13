"""Choose values to keep encoded: a few choices, from the cheapest encodings to all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import fsum, inf

from ..problem.encoded_problem import encodable
from ..problem.liveness import Choice
from ..problem.problem import Problem

_HALVINGS = 60
_PRICES = (0.1, 1.0, 4.0)  # multiples of the seconds per byte of recomputing all of forward


@lru_cache(maxsize=8)
def choices_of(problem: Problem) -> tuple[Choice, ...]:
    """Return choices worth planning with, from the fewest values to the most, the empty one left out.

    There is one choice for each of a few prices in seconds per byte. The cost of an encoding is the seconds of its
    codec and the price of its code's bytes. Every value has the encoding of least cost, if that is less than the price
    of its own bytes.
    So equal values are treated equally. Of equally good encodings the one with the lowest error is taken. If the errors
    of approximate encodings would exceed `Problem.error_budget`, errors have a price too, the lowest that keeps the
    budget. The rest of the budget goes to the exchanges that gain most.
    """
    forward = problem.ops[: problem.forward_length]
    made_bytes = sum(problem.values[value].size_bytes for op in forward for value in op.makes)
    usual = fsum(op.seconds for op in forward) / max(made_bytes, 1)
    choices = (_cheapest(problem, price * usual) for price in _PRICES)
    return tuple(choice for choice in dict.fromkeys(choices) if choice)


@dataclass(frozen=True)
class _Option:
    """An option to keep a value: unencoded (number -1) or encoded.

    cost: seconds, with bytes at their price.
    """

    number: int
    cost: float
    error: float
    size_bytes: int


def _cheapest(problem: Problem, price: float) -> Choice:
    values = encodable(problem)
    options = [_options(problem, value, price) for value in values]
    chosen = _within(options, problem.error_budget)
    return tuple((value, option.number) for value, option in zip(values, chosen, strict=True) if option.number >= 0)


def _options(problem: Problem, value: int, price: float) -> list[_Option]:
    """Return the options to keep a value, the cheapest first."""
    record = problem.values[value]
    options = [_Option(-1, price * record.size_bytes, 0.0, record.size_bytes)]
    for number, encoding in enumerate(record.encodings):
        error = encoding.error if encoding.fidelity == "approximate" else 0.0
        if encoding.size_bytes < record.size_bytes and error <= problem.error_budget:
            options.append(_Option(number, encoding.seconds + price * encoding.size_bytes, error, encoding.size_bytes))
    return sorted(options, key=lambda option: (option.cost, option.number >= 0, option.error, option.size_bytes))


def _within(options: Sequence[Sequence[_Option]], error_budget: float) -> list[_Option]:
    """Choose one option of each list, with errors within the budget.

    This solves a Lagrangian relaxation, then makes the exchanges that still fit. The result is at most one exchange
    from the optimum of the relaxation of the multiple-choice knapsack (Sinha and Zoltners 1979).
    """
    chosen = [alternatives[0] for alternatives in options]
    if fsum(option.error for option in chosen) <= error_budget:
        return chosen

    def at_price(error_price: float) -> list[_Option]:
        return [
            min(alternatives, key=lambda option: option.cost + error_price * option.error) for alternatives in options
        ]

    low, high = 0.0, 1.0
    while fsum(option.error for option in at_price(high)) > error_budget and high < inf:
        low, high = high, high * 16
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if fsum(option.error for option in at_price(middle)) > error_budget else (low, middle)
        )
    chosen = at_price(high)
    left = error_budget - fsum(option.error for option in chosen)
    exchanges = [
        ((current.cost - option.cost) / (option.error - current.error), place, option)
        for place, (alternatives, current) in enumerate(zip(options, chosen, strict=True))
        for option in alternatives
        if option.cost < current.cost and option.error > current.error
    ]
    for _, place, option in sorted(exchanges, key=lambda exchange: -exchange[0]):
        more = option.error - chosen[place].error
        if more <= left and option.cost < chosen[place].cost:
            chosen[place] = option
            left -= more
    return chosen


def choice_text(problem: Problem, choice: Choice) -> str:
    """Describe a choice."""
    names = sorted({problem.values[value].encodings[number].name for value, number in choice})
    return f"{len(choice)} values encoded ({', '.join(names)})"
