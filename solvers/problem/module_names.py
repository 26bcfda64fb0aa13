"""Shortens module names, and merges names that differ in one number only into one name: `h.0-5.attn`."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Row = TypeVar("Row")

# At most nine ASCII digits: names are data, and Python refuses to read numbers of thousands of digits.
_NUMBER = re.compile(r"\.([0-9]{1,9})(?=\.|$)")


def shortened(module: str, depth: int | None = None) -> str:
    """Return the first `depth` names of a module's path; by default up to its first number (`h.3`), else two names."""
    parts = module.split(".")
    if depth is not None:
        return ".".join(parts[:depth])
    numbered = re.match(r"(.*?\.\d+)(\.|$)", module)
    return numbered[1] if numbered else ".".join(parts[:2])


def plain_operation(name: str) -> str:
    """Return the ATen operation of a captured kernel's name: `mm` of `mm_default_4`."""
    return re.sub(r"(_(default|tensor|scalar|int|dim|self|tensor_scalar))?(_\d+)?$", "", name)


def pattern_of(name: str) -> str:
    """Return the name with its first number left open: `h.*.attn` for `h.3.attn`."""
    return _NUMBER.sub(".*", name, count=1)


def grouped(
    rows: Iterable[Row], name_of: Callable[[Row], str], row_key: Callable[[Row], Hashable]
) -> list[tuple[str, list[Row]]]:
    """Group rows whose names differ in their first number only and whose `row_key` is equal; give each group one name.

    Groups come in the order of their first rows.
    """
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        groups.setdefault((pattern_of(name_of(row)), row_key(row)), []).append(row)
    return [(merged_name([name_of(row) for row in group]), group) for group in groups.values()]


def merged_name(names: list[str]) -> str:
    """Return one name for names of one pattern: `["h.0", "h.1", "h.2", "h.5"]` is `h.0-2,5`."""
    numbers = sorted({int(match[1]) for name in names if (match := _NUMBER.search(name))})
    if len(numbers) < 2:
        return names[0]
    return _NUMBER.sub(f".{_ranges(numbers)}", names[0], count=1)


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
