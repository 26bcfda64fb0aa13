"""Saves plans as versioned JSON and loads them; nothing in a file is ever executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...solvers.problem.errors import ScheduleError
from ...solvers.problem.plain_text import printable, shortened
from ...solvers.problem.plan import Plan
from ...solvers.problem.problem import Problem
from ...solvers.problem.problem_file import number_of, numbers_of, problem_of, seconds_of, shown, text_of, texts_of
from ...solvers.problem.schedule import (
    Decode,
    Encode,
    Forget,
    Free,
    FreeCode,
    Instruction,
    Record,
    Run,
    Schedule,
    Segment,
)
from ...solvers.problem.simulate import make_plan
from ...storage.bounded_json import read_json
from ...storage.public_files import read_bounded, write_whole
from ..errors import PlanError

_FORMAT = "lowtide plan"
_VERSION = 2  # increased when a key of a plan gets another name or meaning
_REQUIRED = ("problem", "instructions", "segments", "solver", "budget_bytes", "lower_bound_seconds", "solve_seconds")
_REQUIRED += ("notes",)
# Limits; a plan of 126 layers with all its codes has a tenth of these.
_MOST_BYTES = 128 * 2**20
_MOST_PARTS = 16_000_000
_MOST_WORK = 20_000_000  # values read and made by all that is run: a minute of simulation

_INSTRUCTIONS: dict[str, type[Instruction]] = {
    "run": Run,
    "free": Free,
    "record": Record,
    "forget": Forget,
    "encode": Encode,
    "decode": Decode,
    "free_code": FreeCode,
}


def save_plan(plan: Plan, path: str | Path, made_by: Mapping[str, Any] | None = None) -> None:
    """Write a plan to a file, completely or not at all.

    made_by: the origin of the plan as plain data, for the reader of the file.

    Raises OSError if the file cannot be written.
    """
    payload = plan_to_dict(plan) | ({"made_by": dict(made_by)} if made_by is not None else {})
    write_whole(Path(path), json.dumps(payload).encode())


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain lists and numbers."""
    names = {kind: name for name, kind in _INSTRUCTIONS.items()}
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "summary": summary_of(plan),
        "solver": plan.solver,
        "budget_bytes": plan.budget_bytes,
        "lower_bound_seconds": plan.lower_bound_seconds,
        "solve_seconds": plan.solve_seconds,
        "notes": list(plan.notes),
        "instructions": [[names[type(i)], *asdict(i).values()] for i in plan.schedule.instructions],
        "segments": [[s.block, s.start, s.stop] for s in plan.schedule.segments],
        "problem": json.loads(plan.problem.to_json()),
    }


def summary_of(plan: Plan) -> dict[str, Any]:
    """Return the main numbers of a plan."""
    return {
        "model": plan.problem.name,
        "budget_bytes": plan.budget_bytes,
        "peak_bytes": plan.peak_bytes,
        "baseline_peak_bytes": plan.baseline_peak_bytes,
        "resident_bytes": plan.problem.resident_bytes,
        "seconds": plan.seconds,
        "baseline_seconds": plan.baseline_seconds,
        "extra_seconds": plan.extra_seconds,
        "lower_bound_seconds": plan.lower_bound_seconds,
        "encoded_values": len(plan.encoded),
        "original_bytes": plan.original_bytes,
        "packed_bytes": plan.packed_bytes,
        "encoding_error": plan.encoding_error,
        "error_budget": plan.problem.error_budget,
        "costs": plan.costs,
        "solver": plan.solver,
        "solve_seconds": plan.solve_seconds,
        "notes": list(plan.notes),
    }


def load_plan(path: str | Path) -> Plan:
    """Read a plan, check all of it and simulate it. Nothing in it is run, and none of its own numbers is trusted.

    Raises PlanError for a file that is damaged, too large, not a plan, or of another version.
    """
    payload = _read(path)
    try:
        return _plan_of(payload)
    except (ValueError, ScheduleError) as error:
        raise PlanError(f"{_printable_path(path)} is a damaged plan ({shortened(str(error))}); plan again") from error


def load_made_by(path: str | Path) -> dict[str, Any] | None:
    """Return the origin that a saved plan states, unchecked, or None if it states none. Raises PlanError."""
    made_by = _read(path).get("made_by")
    if made_by is not None and not isinstance(made_by, dict):
        raise PlanError(f"{_printable_path(path)} is a damaged plan (made_by is {shown(made_by)}); plan again")
    return made_by


def _read(path: str | Path) -> dict[str, Any]:
    """Return the content of a plan's file of the right format and version."""
    try:
        content = read_bounded(Path(path), _MOST_BYTES)
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:  # a path with a zero in it is a ValueError
        raise PlanError(f"{_printable_path(path)} cannot be read as a plan: {shortened(str(error))}") from error
    try:
        payload = read_json(text, _MOST_PARTS, finite=False)
    except ValueError as error:
        raise PlanError(
            f"{_printable_path(path)} is not JSON, so it is not a plan: {shortened(str(error))}; save the plan again"
        ) from error
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        raise PlanError(
            f"{_printable_path(path)} is JSON but not a plan of lowtide; "
            "`lowtide plan --out` and `save_plan` write plans"
        )
    version = payload.get("version")
    if type(version) is not int or version != _VERSION:
        older = type(version) is int and version < _VERSION
        origin = "was made by an older lowtide: it" if older else "was not made by this lowtide: it"
        raise PlanError(
            f"{_printable_path(path)} {origin} has version {shown(version)}, and this lowtide reads version "
            f"{_VERSION}; plan again"
        )
    return payload


def _plan_of(payload: dict[str, Any]) -> Plan:
    """Build the plan from a file's content. Raises ValueError, ScheduleError."""
    missing = next((name for name in _REQUIRED if name not in payload), None)
    if missing is not None:
        raise ValueError(f"{missing!r} is missing")
    problem = problem_of(payload["problem"])
    schedule = _schedule_of(payload["instructions"], payload["segments"], problem)
    budget_bytes, bound = payload["budget_bytes"], payload["lower_bound_seconds"]
    return make_plan(
        problem,
        schedule,
        solver=text_of(payload["solver"], "solver"),
        budget_bytes=None if budget_bytes is None else number_of(budget_bytes, "budget_bytes"),
        lower_bound_seconds=None if bound is None else seconds_of(bound, "lower_bound_seconds"),
        solve_seconds=seconds_of(payload["solve_seconds"], "solve_seconds"),
        notes=texts_of(payload["notes"], "notes"),
    )


def _schedule_of(instruction_list: object, segment_list: object, problem: Problem) -> Schedule:
    instructions = tuple(
        _instruction_of(entry, place, problem) for place, entry in enumerate(_list(instruction_list, "instructions"))
    )
    work = sum(len(problem.ops[i.op].reads) + len(problem.ops[i.op].makes) for i in instructions if isinstance(i, Run))
    if work > _MOST_WORK:
        raise ValueError(f"what is run reads and makes values {work:,} times, more than the limit of {_MOST_WORK:,}")
    segments = []
    for segment in _list(segment_list, "segments"):
        numbers = numbers_of(segment, "a segment")
        if len(numbers) != 3:
            raise ValueError(f"a segment has {len(numbers)} numbers, not 3")
        segments.append(Segment(*numbers))
    return Schedule(instructions, tuple(segments))


def _instruction_of(entry: object, place: int, problem: Problem) -> Instruction:
    name, *numbers = _list(entry, f"instruction {place}") or [None]
    kind = _INSTRUCTIONS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"an instruction {shown(name)} is not one that plans have: {', '.join(_INSTRUCTIONS)}")
    names = [field.name for field in fields(kind)]
    if len(numbers) != len(names):
        raise ValueError(f"instruction {place} ({name}) has {len(numbers)} numbers, not {len(names)}")
    arguments = {n: number_of(number, f"{n} of instruction {place}") for n, number in zip(names, numbers, strict=True)}
    counts = {"op": len(problem.ops), "value": len(problem.values)}
    for what, number in arguments.items():
        count = len(problem.values[arguments["value"]].encodings) if what == "encoding" else counts[what]
        if number >= count:
            raise ValueError(f"instruction {place} names {what} {number} of a step that has {count}")
    return kind(**arguments)


def _list(value: object, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what} is {shown(value)}, not a list")
    return value


def _printable_path(path: str | Path) -> str:
    return printable(str(path))
