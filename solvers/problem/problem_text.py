"""Writes a problem as a program in trace order, one operation per line, with its bytes, milliseconds and module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .plain_text import shortened
from .units import format_bytes, format_milliseconds

_MOST_LETTERS = 240  # of a line
_MOST_READS = 8  # values named in a line


def problem_text(problem: Any) -> str:
    """Return the text of a `Problem`."""
    blocks, forward = len(problem.block_classes), problem.forward_length
    resident = sum(value.resident for value in problem.values)
    sizes = [f"{format_bytes(problem.resident_bytes)} resident", f"generator state {format_bytes(problem.state_bytes)}"]
    sizes += [f"peak at least {format_bytes(problem.floor_bytes)}"] if problem.floor_bytes else []
    sizes += [f"codes may add {problem.error_budget:.3g} of the gradient's variance"] if problem.error_budget else []
    lines = [
        f"Problem {problem.name}: {len(problem.ops)} operations ({forward} forward) in {blocks} blocks of "
        f"{len(set(problem.block_classes))} classes, {problem.costs} costs",
        f"{len(problem.values)} values ({resident} resident), {', '.join(sizes)}",
        *(f"note: {note}" for note in problem.notes),
        _row("bytes", "working", "ms", "operation", "module"),
        *_program(problem),
    ]
    return "\n".join(shortened(line, _MOST_LETTERS) for line in lines)


def _program(problem: Any) -> Iterator[str]:
    """Yield a title for each segment and a line for each of its operations."""
    blocks = len(problem.block_classes)
    for place, operations in enumerate(problem.segment_operations):
        block = min(place, 2 * blocks - 1 - place)
        phase = "forward" if place < blocks else "backward"
        yield f"{phase} of block {block} (class {problem.block_classes[block]}):"
        for number in operations:
            op = problem.ops[number]
            made_bytes = sum(problem.values[value].size_bytes for value in op.makes)
            numbers = (
                format_bytes(made_bytes) if op.makes else "",
                format_bytes(op.working_bytes) if op.working_bytes else "",
                format_milliseconds(op.seconds) if op.seconds else "",
            )
            yield _row(*numbers, operation_line(problem, op), op.module, _marks(problem, number))


def _row(made: str, working: str, milliseconds: str, code: str, module: str, marks: str = "") -> str:
    comment = f"{module}{marks}".strip()
    return f"{made:>10} {working:>10} {milliseconds:>9}  {code}" + (f"  # {comment}" if comment else "")


def operation_line(problem: Any, op: Any) -> str:
    """Return an operation of a `Problem` as an assignment: `sum, mean = native_layer_norm(input, weight)`."""
    made = ", ".join(problem.values[value].name for value in op.makes)
    reads = [problem.values[value].name for value in op.reads[:_MOST_READS]]
    reads += [f"and {len(op.reads) - _MOST_READS} more"] if len(op.reads) > _MOST_READS else []
    return f"{made + ' = ' if made else ''}{_operation_name(op)}({', '.join(reads)})"


def _operation_name(op: Any) -> str:
    """Return the calls that an `Op` makes, without their arguments: `mm`, `mul > add_`; its name if it has no kind."""
    role, *calls = op.kind.split(" > ")
    names = [call.partition("(")[0].removeprefix("aten.").removesuffix(".default") for call in calls]
    return " > ".join(names) or role or op.name


def _marks(problem: Any, number: int) -> str:
    """Return what is unusual about an operation and about the values that it makes, in brackets."""
    op = problem.ops[number]
    codes = sum(len(problem.values[value].encodings) for value in op.makes)
    marks = {
        "random": op.random,
        "runs once": not op.repeatable and number < problem.forward_length,
        "held": any(problem.values[value].held for value in op.makes),
        f"{codes} code{'' if codes == 1 else 's'}": codes,
    }
    named = [name for name, applies in marks.items() if applies]
    return f" ({', '.join(named)})" if named else ""
