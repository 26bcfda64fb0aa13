"""Reads problems from JSON that anyone may have written: each part of its kind, within bounds, and consistent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from math import inf, isfinite
from typing import Any, TypeVar

from .problem import EncodingOption, Op, Problem, Reference, Value

MOST_BYTES = 2**60  # of all that a problem tells together, so that sums fit in 64 bits
MOST_SECONDS = 1e12
_MOST_LETTERS = 1_000_000
_MOST_REPORTED = 60
_FIDELITIES = ("bitwise", "rounding", "approximate")
_COSTS = ("measured", "roofline", "flops")

_Record = TypeVar("_Record", Op, Value, EncodingOption, Reference, Problem)


def problem_of(told: object) -> Problem:
    """The problem that plain lists and dicts tell, as `Problem.to_json` writes them.

    Raises ValueError, naming the part, where one is missing, of another kind, out of bounds or at odds with others.
    """
    parts = _dict(told, "the problem")
    made = {
        "ops": tuple(_record(Op, op, f"operation {n}") for n, op in enumerate(_list(parts.get("ops"), "ops"))),
        "values": tuple(
            _record(Value, value, f"value {n}", encodings=_encodings(value, n))
            for n, value in enumerate(_list(parts.get("values"), "values"))
        ),
    }
    if "reference" in parts:
        told_reference = parts["reference"]
        made["reference"] = told_reference and _record(Reference, told_reference, "the reference")
    problem = _record(Problem, parts, "the problem", **made)
    check_problem(problem)
    return problem


def check_problem(problem: Problem) -> None:
    """Raises ValueError for a problem whose parts do not fit together."""
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
        raise ValueError("a value is made though it is there before the step")
    if problem.costs not in _COSTS:
        raise ValueError(f"costs are {shown(problem.costs)}, none of {', '.join(_COSTS)}")
    codes = [encoding for value in values for encoding in value.encodings]
    if any(encoding.fidelity not in _FIDELITIES for encoding in codes):
        raise ValueError(f"an encoding's fidelity is none of {', '.join(_FIDELITIES)}")
    total_bytes = problem.resident_bytes + problem.state_bytes * (1 + len(ops)) + problem.floor_bytes
    total_bytes += sum(value.size_bytes for value in values) + sum(
        op.working_bytes + (op.view_bytes or 0) for op in ops
    )
    for code in codes:
        total_bytes += code.size_bytes + code.encode_working_bytes + code.decode_working_bytes
        total_bytes += code.decoded_bytes or 0
    if total_bytes > MOST_BYTES:
        raise ValueError(f"{total_bytes:,} bytes in all, more than any machine has")


def number_of(told: object, what: str) -> int:
    """A whole number of at least 0. Raises ValueError for anything else."""
    if type(told) is not int or not 0 <= told <= MOST_BYTES:
        raise ValueError(f"{what} is {shown(told)}, not a number from 0 to {MOST_BYTES}")
    return told


def seconds_of(told: object, what: str) -> float:
    """A number of at least 0. Raises ValueError for anything else."""
    if type(told) not in (int, float) or not isfinite(told) or not 0 <= told <= MOST_SECONDS:  # pyright: ignore
        raise ValueError(f"{what} is {shown(told)}, not a number from 0 to {MOST_SECONDS:g}")
    return told  # pyright: ignore[reportReturnType]


def text_of(told: object, what: str) -> str:
    """A text of bounded length. Raises ValueError for anything else."""
    if type(told) is not str or len(told) > _MOST_LETTERS:
        raise ValueError(f"{what} is {shown(told)}, not a text of at most {_MOST_LETTERS:,} letters")
    return told


def texts_of(told: object, what: str) -> tuple[str, ...]:
    """Texts. Raises ValueError for anything else."""
    return tuple(text_of(one, what) for one in _list(told, what))


def numbers_of(told: object, what: str) -> tuple[int, ...]:
    """Whole numbers of at least 0. Raises ValueError for anything else."""
    return tuple(number_of(one, what) for one in _list(told, what))


def shown(told: object) -> str:
    """A few letters of what a file says, for messages: on one line, whatever it is."""
    if isinstance(told, (dict, list)):
        return f"a {type(told).__name__} of {len(told)}"
    if isinstance(told, str) and len(told) > _MOST_REPORTED:
        return f"{told[:_MOST_REPORTED]!a}…"
    return ascii(told)


def _flag(told: object, what: str) -> bool:
    if type(told) is not bool:
        raise ValueError(f"{what} is {shown(told)}, not true or false")
    return told


def _share(told: object, what: str) -> float:
    """A number of at least 0, which may be infinite: the error of a code that nothing can be said of."""
    return told if told == inf else seconds_of(told, what)  # pyright: ignore[reportReturnType]


def _optional(read: Callable[[object, str], Any]) -> Callable[[object, str], Any]:
    return lambda told, what: None if told is None else read(told, what)


# By the annotations of the fields: what a file may say there.
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


def _record(kind: type[_Record], told: object, where: str, **made: Any) -> _Record:
    """A record of a dataclass, each field read by its annotation. made: fields that have been read already."""
    given = _dict(told, where)
    known = {one.name: one for one in fields(kind)}
    strange = next((name for name in given if name not in known), None)
    if strange is not None:
        raise ValueError(f"{where} has {shown(strange)}, which none has")
    found: dict[str, Any] = {}
    for name, one in known.items():
        if name in made:
            found[name] = made[name]
        elif name in given:
            read = _share if name in ("error", "error_budget") else _READERS[str(one.type)]
            found[name] = read(given[name], f"{name} of {where}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{name} of {where} is missing")
    return kind(**found)


def _encodings(value: object, number: int) -> tuple[EncodingOption, ...]:
    told = _dict(value, f"value {number}").get("encodings", [])
    return tuple(_record(EncodingOption, one, f"an encoding of value {number}") for one in _list(told, "encodings"))


def _values_of(op: Op) -> tuple[int, ...]:
    reused = getattr(op, "reuses", None)
    return (*op.reads, *op.makes) if reused is None else (*op.reads, *op.makes, reused)


def _dict(told: object, what: str) -> Mapping[str, Any]:
    if not isinstance(told, dict):
        raise ValueError(f"{what} is {shown(told)}, not a dict")
    return told


def _list(told: object, what: str) -> Sequence[Any]:
    if not isinstance(told, list):
        raise ValueError(f"{what} is {shown(told)}, not a list")
    return told
