"""Saves plans as versioned JSON and loads them; nothing in a file is ever executed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..solvers.errors import ScheduleError
from ..solvers.plan import Plan
from ..solvers.problem import Problem
from ..solvers.schedule import Decode, Encode, Forget, Free, FreeCode, Instruction, Record, Run, Schedule, Segment
from ..solvers.simulate import make_plan
from .errors import PlanError

_FORMAT = "lowtide plan"
_VERSION = 1

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
    """Writes a plan, whole or not at all. made_by: what it was made from, as plain data, for whoever loads it."""
    told = plan_to_dict(plan) | ({"made_by": dict(made_by)} if made_by is not None else {})
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        temporary.write_text(json.dumps(told), encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """A plan as plain lists and numbers."""
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
    """The numbers of a plan that people ask for first."""
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
        "encoded_bytes": plan.encoded_bytes,
        "code_bytes": plan.code_bytes,
        "encoding_error": plan.encoding_error,
        "error_budget": plan.problem.error_budget,
        "costs": plan.costs,
        "solver": plan.solver,
        "solve_seconds": plan.solve_seconds,
        "notes": list(plan.notes),
    }


def load_plan(path: str | Path) -> Plan:
    """Reads a plan and checks it by simulation.

    Raises PlanError for a file that is damaged, no plan, or of another version.
    """
    told = _read(path)
    try:
        return _plan_of(told)
    except (ValueError, ScheduleError) as error:
        raise PlanError(f"{path} is a damaged plan ({error}); plan again") from error
    except KeyError as error:
        raise PlanError(f"{path} is a damaged plan ({error} is missing); plan again") from error
    except (TypeError, IndexError, AttributeError) as error:
        raise PlanError(f"{path} is a damaged plan (a part of it is not what it is in a plan); plan again") from error


def load_made_by(path: str | Path) -> dict[str, Any] | None:
    """What a saved plan says that it was made from, unchecked; None if it does not say. Raises PlanError."""
    told = _read(path).get("made_by")
    if told is not None and not isinstance(told, dict):
        raise PlanError(f"{path} is a damaged plan (made_by is a {type(told).__name__}); plan again")
    return told


def _read(path: str | Path) -> dict[str, Any]:
    """The content of a plan's file, of the right format and version."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} cannot be read as a plan: {error}") from error
    try:
        told = json.loads(text)
    except json.JSONDecodeError as error:
        raise PlanError(f"{path} is no JSON, so no plan: {error}; save the plan again") from error
    if not isinstance(told, dict) or told.get("format") != _FORMAT:
        raise PlanError(f"{path} is JSON but no plan of lowtide; `lowtide plan --out` and `save_plan` write plans")
    if told.get("version") != _VERSION:
        raise PlanError(f"{path} has version {told.get('version')!r}, this lowtide reads {_VERSION}; plan again")
    return told


def _plan_of(told: dict[str, Any]) -> Plan:
    problem = Problem.from_json(json.dumps(told["problem"]))
    unknown = next((name for name, *_ in told["instructions"] if name not in _INSTRUCTIONS), None)
    if unknown is not None:
        raise ValueError(f"an instruction {unknown!r} is none that plans have: {', '.join(_INSTRUCTIONS)}")
    instructions = tuple(_INSTRUCTIONS[name](*map(int, numbers)) for name, *numbers in told["instructions"])
    segments = tuple(Segment(*map(int, segment)) for segment in told["segments"])
    counts = {"op": len(problem.ops), "value": len(problem.values)}
    for place, instruction in enumerate(instructions):
        for name, number in asdict(instruction).items():
            count = len(problem.values[instruction.value].encodings) if name == "encoding" else counts[name]  # pyright: ignore
            if not 0 <= number < count:
                raise ValueError(f"instruction {place} names {name} {number} of a step that has {count}")
    return make_plan(
        problem,
        Schedule(instructions, segments),
        solver=str(told["solver"]),
        budget_bytes=None if told["budget_bytes"] is None else int(told["budget_bytes"]),
        lower_bound_seconds=None if told["lower_bound_seconds"] is None else float(told["lower_bound_seconds"]),
        solve_seconds=float(told["solve_seconds"]),
        notes=tuple(map(str, told["notes"])),
    )
