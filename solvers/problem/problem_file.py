"""Read problems from JSON that anyone may have written: each field of its kind, within bounds, and consistent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from math import inf, isfinite
from typing import Any, TypeVar

from .problem import EncodingOption, Op, Problem, Reference, Value

MOST_BYTES = 2**60  # the limit of all bytes of a problem together, so that sums fit in 64 bits
MOST_SECONDS = 1e12
_MOST_LETTERS = 1_000_000
_MOST_REPORTED = 60
_FIDELITIES = ("bitwise", "rounding", "approximate")
_COSTS = ("measured", "roofline", "flops")

_Record = TypeVar("_Record", Op, Value, EncodingOption, Reference, Problem)


def problem_of(content: object) -> Problem:
    """Return the problem of plain lists and dicts, as `Problem.to_json` writes them.

    Raises ValueError with the name of a field that is missing, of another kind, out of bounds or inconsistent.
    """
    parts = _dict(content, "the problem")
    reference = parts.get("reference")
    ready = {
        "ops": tuple(_record(Op, op, f"operation {n}") for n, op in enumerate(_list(parts.get("ops"), "ops"))),
        "values": tuple(
            _record(Value, value, f"value {n}", encodings=_encodings(value, n))
            for n, value in enumerate(_list(parts.get("values"), "values"))
        ),
        "reference": None if reference is None else _record(Reference, reference, "the reference"),
    }
    problem = _record(Problem, parts, "the problem", **ready)
    check_problem(problem)
    return problem


def check_problem(problem: Problem) -> None:
    """Raise ValueError for a problem whose fields do not fit together."""
    ops, values, blocks = problem.ops, problem.values, len(problem.block_classes)
    if problem.forward_length > len(ops) or (ops and not blocks):
        raise ValueError(f"forward has {problem.forward_length} of {len(ops)} operations in {blocks} blocks")
    order = [op.block if n < problem.forward_length else 2 * blocks - 1 - op.block for n, op in enumerate(ops)]
    for number, op in enumerate(ops):
        for value in _values_of(op):
            if value >= len(values):
                raise ValueError(f"operation {number} names value {value} of {len(values)}")
        if op.block >= blocks or (number and order[number] < order[number - 1]):
            raise ValueError(f"operation {number} lies in block {op.block} of {blocks}, out of order")
    if any(values[value].resident for op in ops for value in op.makes):
        raise ValueError("an operation makes a value that is resident before the step")
    if problem.costs not in _COSTS:
        raise ValueError(f"costs are {shown(problem.costs)}, not one of {', '.join(_COSTS)}")
    codes = [encoding for value in values for encoding in value.encodings]
    if any(encoding.fidelity not in _FIDELITIES for encoding in codes):
        raise ValueError(f"an encoding's fidelity is not one of {', '.join(_FIDELITIES)}")
    total_bytes = problem.resident_bytes + problem.state_bytes * (1 + len(ops)) + problem.floor_bytes
    total_bytes += sum(value.size_bytes for value in values) + sum(
        op.working_bytes + (op.view_bytes or 0) for op in ops
    )
    for code in codes:
        total_bytes += code.size_bytes + code.encode_working_bytes + code.decode_working_bytes
        total_bytes += code.read_itself_bytes or 0
    if total_bytes > MOST_BYTES:
        raise ValueError(f"the problem has {total_bytes:,} bytes in all, above the limit of {MOST_BYTES:,}")


def number_of(content: object, label: str) -> int:
    """Return a whole number of at least 0. Raises ValueError for anything else."""
    if type(content) is not int or not 0 <= content <= MOST_BYTES:
        raise ValueError(f"{label} is {shown(content)}, not a number from 0 to {MOST_BYTES}")
    return content


def seconds_of(content: object, label: str) -> float:
    """Return a number of at least 0. Raises ValueError for anything else."""
    if type(content) not in (int, float) or not isfinite(content) or not 0 <= content <= MOST_SECONDS:  # pyright: ignore
        raise ValueError(f"{label} is {shown(content)}, not a number from 0 to {MOST_SECONDS:g}")
    return content  # pyright: ignore[reportReturnType]


def text_of(content: object, label: str) -> str:
    """Return a text of bounded length. Raises ValueError for anything else."""
    if type(content) is not str or len(content) > _MOST_LETTERS:
        raise ValueError(f"{label} is {shown(content)}, not a text of at most {_MOST_LETTERS:,} letters")
    return content


def texts_of(content: object, label: str) -> tuple[str, ...]:
    """Return a list of texts. Raises ValueError for anything else."""
    return tuple(text_of(text, label) for text in _list(content, label))


def numbers_of(content: object, label: str) -> tuple[int, ...]:
    """Return a list of whole numbers of at least 0. Raises ValueError for anything else."""
    return tuple(number_of(number, label) for number in _list(content, label))


def shown(content: object) -> str:
    """Return the start of a file's content for messages, on one line."""
    if isinstance(content, (dict, list)):
        return f"a {type(content).__name__} of {len(content)}"
    if isinstance(content, str) and len(content) > _MOST_REPORTED:
        return f"{content[:_MOST_REPORTED]!a}…"
    return ascii(content)


def _flag(content: object, label: str) -> bool:
    if type(content) is not bool:
        raise ValueError(f"{label} is {shown(content)}, not true or false")
    return content


def _share(content: object, label: str) -> float:
    """Return a number of at least 0, which may be infinite: the error of a code whose error is unknown."""
    return content if content == inf else seconds_of(content, label)  # pyright: ignore[reportReturnType]


def _optional(read: Callable[[object, str], Any]) -> Callable[[object, str], Any]:
    return lambda content, label: None if content is None else read(content, label)


# Functions that read a field, by its annotation.
_READERS: dict[str, Callable[[object, str], Any]] = {
    "int": number_of,
    "int | None": _optional(number_of),
    "float": seconds_of,
    "bool": _flag,
    "str": text_of,
    "Literal['bitwise', 'rounding', 'approximate']": text_of,
    "tuple[int, ...]": numbers_of,
    "tuple[str, ...]": texts_of,
}


def _record(kind: type[_Record], content: object, label: str, **ready: Any) -> _Record:
    """Return a record of a dataclass, each field read by its annotation.

    ready: fields that have been read already.
    """
    given = _dict(content, label)
    known_fields = {field.name: field for field in fields(kind)}
    for name in given:
        if name not in known_fields:
            raise ValueError(f"{label} has {shown(name)}, which is not a known field")
    arguments: dict[str, Any] = dict(ready)
    for name, field in known_fields.items():
        if name not in given:
            raise ValueError(f"{name} of {label} is missing")
        if name not in ready:
            read = _share if name in ("error", "error_budget") else _READERS[str(field.type)]
            arguments[name] = read(given[name], f"{name} of {label}")
    return kind(**arguments)


def _encodings(value: object, number: int) -> tuple[EncodingOption, ...]:
    content = _dict(value, f"value {number}").get("encodings")
    return tuple(
        _record(EncodingOption, encoding, f"an encoding of value {number}") for encoding in _list(content, "encodings")
    )


def _values_of(op: Op) -> tuple[int, ...]:
    return (*op.reads, *op.makes) if op.reuses is None else (*op.reads, *op.makes, op.reuses)


def _dict(content: object, label: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{label} is {shown(content)}, not a dict")
    return content


def _list(content: object, label: str) -> Sequence[Any]:
    if not isinstance(content, list):
        raise ValueError(f"{label} is {shown(content)}, not a list")
    return content
