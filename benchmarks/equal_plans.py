"""Compares plans and generated code of ten models with those that another version of lowtide wrote to a file."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import lowtide
import torch
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from small_models import BATCH, DEFAULT_SEQUENCE, SEQUENCE, SMALL

# The model, the budget (0: the smallest peak, 1: everything kept) and options.
CASES: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("gpt2", 0.25, {}),
    ("gpt2", 0.00, {"fidelity": "approximate"}),
    ("llama", 0.25, {}),
    ("llama", 0.12, {"fidelity": "approximate", "error_budget": 0.03}),
    ("bert", 0.38, {"fidelity": "rounding"}),
    ("roberta", 1.00, {}),
    ("t5", 0.38, {}),
    ("vit", 0.25, {"fidelity": "rounding"}),
    ("resnet", 0.50, {}),
    ("whisper", 0.38, {}),
    ("mamba", 0.38, {}),
    ("mixtral", 0.50, {}),
    ("convnext", 0.50, {"fidelity": "approximate"}),
)


def record_of(name: str, share: float, options: dict[str, Any]) -> dict[str, Any]:
    """Return what is compared of one plan: bytes and FLOPs, instructions, segments, and generated code up to names."""
    torch.manual_seed(0)
    model: Any = build_model(name, overrides=SMALL[name])
    batch = sample_batch(model, BATCH, SEQUENCE.get(name, DEFAULT_SEQUENCE))
    torch.manual_seed(1)
    fastest, *_, smallest = lowtide.sweep(model, (), batch, costs="flops", count=3, **options)
    budget_bytes = round(smallest.peak_bytes + share * (fastest.peak_bytes - smallest.peak_bytes))
    torch.manual_seed(1)
    small: Any = lowtide.rewrite(model, budget_bytes, (), batch, costs="flops", **options)
    plan, functions = small.plan, unnamed(small.code)
    return {
        "peak_bytes": plan.peak_bytes,
        "baseline_peak_bytes": plan.baseline_peak_bytes,
        "seconds": plan.seconds,
        "lower_bound_seconds": plan.lower_bound_seconds,
        "instructions": _digest(
            [[_word(instruction), *astuple(instruction)] for instruction in plan.schedule.instructions]
        ),
        "segments": _digest([astuple(segment) for segment in plan.schedule.segments]),
        "functions": len(functions),
        "code": _digest(functions),
    }


def _word(instruction: Any) -> str:
    """Return an instruction's name: `free_code` for `FreeCode`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(instruction).__name__).lower()


def unnamed(code: str) -> list[str]:
    """Return the functions of generated code as sorted trees, names replaced by numbers in order of appearance."""
    return sorted(_unnamed(node) for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))


def _unnamed(function: ast.FunctionDef) -> str:
    numbers: dict[str, str] = {}
    function.name, function.body = "f", [line for line in function.body if not _is_docstring(line)]
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            node.id = numbers.setdefault(node.id, f"n{len(numbers)}")
        elif isinstance(node, ast.arg):
            node.arg = numbers.setdefault(node.arg, f"n{len(numbers)}")
    return ast.dump(function)


def _is_docstring(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def main() -> int:
    """Write the records, or compare them with a file and print for each model whether they are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--write", action="store_true", help="write the records instead of comparing with them")
    arguments = parser.parse_args()
    records = {}
    before = {} if arguments.write else json.loads(arguments.file.read_text())
    different = 0
    for name, share, options in CASES:
        case = " ".join([name, f"{share:.0%}", *(f"{key}={value}" for key, value in options.items())])
        records[case] = record_of(name, share, options)
        # what an older file does not have is not compared
        expected = before.get(case) or dict.fromkeys(records[case])
        changed = [key for key, value in expected.items() if records[case][key] != value]
        verdict = "written" if arguments.write else f"different: {', '.join(changed)}" if changed else "equal"
        different += not arguments.write and bool(changed)
        print(f"{case:50} {records[case]['peak_bytes']:>12,} bytes  {verdict}", flush=True)
    if arguments.write:
        arguments.file.write_text(json.dumps(records, indent=1))
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
