"""Compares fake layouts with real ones, and rewritten with eager, for every operation that torch tests itself with.

    python -m benchmarks.layouts [--samples 3] [--operations NAME ...] [--dtypes float32 ...] [--only layouts | bits]
                                 [--part 1/4] [--json FILE]

layouts: forward and backward of each sample run with tensors in nine layouts and incoming gradients in four. Each ATen
call below autograd runs on tensors without data too. A line is printed for each operation whose results have another
layout there. It counts the distinct calls, and those that the table of `rewriter/capture/eager/fake_kernel_fixes.py`
corrects. The others are noticed where a step is measured, at the cost of another capture. It shows one uncorrected
call.

bits: a module that is one operation is rewritten. Outputs, gradients and the generator are compared with eager's: with
the sample's numbers, with zeros among them, and with rounded ones. A line is printed for each operation that differs,
is refused or fails.

Needs expecttest (`pip install expecttest`), which torch's samples import.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from .bits import Outcome, compared
from .fakes import Comparing, run_laid_out
from .samples import Sample, samples

_ALL = 1000


def main() -> None:
    """Run what the command line asks for, and print and write tables."""
    options = _arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tables: dict[str, Any] = {}
    for name in options.dtypes:
        if options.only != "bits":
            tables[f"layouts {name}"] = _layouts(name, _samples(options, name))
        if options.only != "layouts":
            tables[f"bits {name}"] = _bits(name, _samples(options, name))
    if options.json:
        Path(options.json).write_text(json.dumps(tables, indent=1), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layouts", description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=3, help="of each operation, at most")
    parser.add_argument("--operations", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--dtypes", nargs="*", default=["float32"], metavar="NAME")
    parser.add_argument("--only", choices=["layouts", "bits"])
    parser.add_argument("--part", default="1/1", help="which part of all operations, as 2/4")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def _samples(options: argparse.Namespace, dtype: str) -> Iterable[Sample]:
    number, of = map(int, options.part.split("/"))
    part = slice(_ALL * (number - 1) // of, _ALL * number // of)
    return samples(getattr(torch, dtype), options.samples, options.operations, part)


def _layouts(dtype: str, calls: Iterable[Sample]) -> dict[str, Any]:
    comparing = Comparing()
    for sample in calls:
        run_laid_out(sample, comparing)
    seen = {name: comparison for name, comparison in comparing.by_operation.items() if comparison.calls}
    calls_in_all = sum(comparison.calls for comparison in seen.values())
    differ_in_all = sum(comparison.differ for comparison in seen.values())
    print(f"\n{dtype}: {len(seen)} ATen operations, {calls_in_all} distinct calls")
    print(f"{'operation':<60} {'calls':>6} {'differ':>6} {'corrected':>9}")
    for name, comparison in sorted(seen.items()):
        if comparison.differ or comparison.example:
            print(f"{name:<60} {comparison.calls:>6} {comparison.differ:>6} {comparison.corrected:>9}")
            if comparison.example:
                print(f"   {comparison.example}")
    rest = sum(comparison.differ - comparison.corrected for comparison in seen.values())
    print(f"{differ_in_all} calls differ, {rest} of them after the table's corrections")
    return {name: vars(comparison) for name, comparison in sorted(seen.items())}


def _bits(dtype: str, calls: Iterable[Sample]) -> dict[str, Any]:
    outcomes: dict[str, list[tuple[int, Outcome]]] = defaultdict(list)
    for sample in calls:
        outcomes[sample.name].append((sample.number, compared(sample)))
    kinds = Counter(outcome.kind for outcomes_of_name in outcomes.values() for _, outcome in outcomes_of_name)
    print(f"\n{dtype}: {len(outcomes)} operations, {sum(kinds.values())} samples: {dict(kinds)}")
    for kind in ("different", "fails", "refused"):
        for name, outcomes_of_name in sorted(outcomes.items()):
            matches = [(number, outcome.explanation) for number, outcome in outcomes_of_name if outcome.kind == kind]
            if matches:
                numbers = ", ".join(str(number) for number, _ in matches)
                print(f"{kind:<10} {name:<40} samples {numbers}: {matches[0][1][:300]}")
    return {
        name: [(number, outcome.kind, outcome.explanation) for number, outcome in outcomes_of_name]
        for name, outcomes_of_name in outcomes.items()
    }


if __name__ == "__main__":
    main()
