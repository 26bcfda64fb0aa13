"""Writes a schedule as a program of numbered operations and values, one instruction per line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import astuple
from typing import Any


def schedule_text(schedule: Any) -> str:
    """Return the text of a `Schedule`, which knows neither names nor sizes: `Plan.schedule_text` has them."""
    counts = f"{len(schedule.instructions)} instructions, {schedule.forward_length} of them forward"
    lines = [f"Schedule: {counts}"]
    for segment, title in zip(schedule.segments, segment_titles(schedule), strict=True):
        lines.append(title)
        lines += [f"  {_line(schedule.instructions[number])}" for number in range(segment.start, segment.stop)]
    return "\n".join(lines)


def segment_titles(schedule: Any) -> Iterator[str]:
    """Yield a title for each segment of a `Schedule`: `forward of block 0:`."""
    half = len(schedule.segments) // 2
    for place, segment in enumerate(schedule.segments):
        yield f"{'forward' if place < half else 'backward'} of block {segment.block}:"


def _line(instruction: Any) -> str:
    """Return an instruction with its numbers: `run(3)`, `free_code(8, 0)`."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(instruction).__name__).lower()
    return f"{name}({', '.join(map(str, astuple(instruction)))})"
