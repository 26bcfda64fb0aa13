"""Reads budgets as people write them: `"8GiB"`, `"8GB"`, a number of bytes, or `"60%"` of today's peak."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from operator import index

from ...solvers.problem.units import format_bytes as format_bytes
from ..errors import BudgetError

__all__ = ["Share", "format_bytes", "parse_bytes"]

_UNITS = {"": 1, "b": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for kind, base in (("b", 1000), ("ib", 1024))
}
_ACCEPTED = (
    'a budget is a number of bytes (8_000_000_000), a text with a unit ("8GiB" is 8·1024³, "8GB" 8·1000³; '
    'B, KiB, MiB, GiB, TiB, KB, MB, GB, TB), or a share of the peak with everything kept ("60%")'
)


@dataclass(frozen=True)
class Share:
    """A budget relative to `baseline_peak_bytes`; 0 < fraction <= 1."""

    fraction: float


def parse_bytes(budget: int | str) -> int | Share:
    """Return a budget as a number of bytes, or as a share of the step's peak with everything kept.

    Units are read in any case; a fraction of a byte is dropped.
    Raises BudgetError for anything but a positive number of bytes or a share up to 100 %. The message says what was
    given and what is accepted.
    """
    if isinstance(budget, str):
        return _parse_text(budget)
    try:
        count = -1 if isinstance(budget, bool) else index(budget)
    except TypeError:
        raise BudgetError(f"budget {budget!r} is a {type(budget).__name__}: {_ACCEPTED}") from None
    if count <= 0:
        raise BudgetError(f"budget {budget!r} is not above 0 bytes: {_ACCEPTED}")
    return count


def _parse_text(budget: str) -> int | Share:
    match = re.fullmatch(r"\s*(-?\d[\d_]*(?:\.\d+)?)\s*([a-zA-Z]*|%)\s*", budget)
    if match is None:
        raise BudgetError(f"budget {budget!r} cannot be read: {_ACCEPTED}")
    number, unit = Decimal(match[1].replace("_", "")), match[2].lower()
    if unit == "%":
        if not 0 < number <= 100:
            raise BudgetError(f"budget {budget!r} is not above 0 % and at most 100 %: {_ACCEPTED}")
        return Share(float(number / 100))
    if unit not in _UNITS:
        raise BudgetError(f"budget {budget!r} has the unknown unit {match[2]!r}: {_ACCEPTED}")
    count = int(number * _UNITS[unit])
    if count <= 0:
        raise BudgetError(f"budget {budget!r} is not above 0 bytes: {_ACCEPTED}")
    return count
