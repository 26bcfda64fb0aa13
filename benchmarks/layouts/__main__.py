"""Every operation that torch tests itself with: fake layouts beside real ones, and rewritten beside eager.

    python -m benchmarks.layouts [--samples 3] [--operations NAME ...] [--dtypes float32 ...] [--only layouts | bits]
                                 [--part 1/4] [--json FILE]

layouts: forward and backward of each sample run with tensors laid out in nine ways and incoming gradients in four; each
ATen call below autograd runs on tensors without data too, and a line tells of each operation whose results lie
otherwise there: in how many distinct calls, in how many of these the table of
`rewriter/capture/eager/fake_kernel_fixes.py` puts that right (the others are seen where a step is measured, at the cost
of another capture), and one that it does not.

bits: a module that is one operation is rewritten, and outputs, gradients and the generator compared with eager's: with
the sample's numbers, with zeros among them, and with rounded ones. A line tells of each operation that differs, is
refused or fails.

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
    """Runs what the command line asks for, and prints and writes tables."""
    told = _arguments()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    tables: dict[str, Any] = {}
    for name in told.dtypes:
        if told.only != "bits":
            tables[f"layouts {name}"] = _layouts(name, _samples(told, name))
        if told.only != "layouts":
            tables[f"bits {name}"] = _bits(name, _samples(told, name))
    if told.json:
        Path(told.json).write_text(json.dumps(tables, indent=1), encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layouts", description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=3, help="of each operation, at most")
    parser.add_argument("--operations", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--dtypes", nargs="*", default=["float32"], metavar="NAME")
    parser.add_argument("--only", choices=["layouts", "bits"])
    parser.add_argument("--part", default="1/1", help="which part of all operations, as 2/4")
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def _samples(told: argparse.Namespace, dtype: str) -> Iterable[Sample]:
    number, of = map(int, told.part.split("/"))
    part = slice(_ALL * (number - 1) // of, _ALL * number // of)
    return samples(getattr(torch, dtype), told.samples, told.operations, part)


def _layouts(dtype: str, calls: Iterable[Sample]) -> dict[str, Any]:
    comparing = Comparing()
    for sample in calls:
        run_laid_out(sample, comparing)
    seen = {name: one for name, one in comparing.by_operation.items() if one.calls}
    print(f"\n{dtype}: {len(seen)} ATen operations, {sum(one.calls for one in seen.values())} distinct calls")
    print(f"{'operation':<60} {'calls':>6} {'differ':>6} {'corrected':>9}")
    for name, one in sorted(seen.items()):
        if one.differ or one.example:
            print(f"{name:<60} {one.calls:>6} {one.differ:>6} {one.corrected:>9}")
            if one.example:
                print(f"   {one.example}")
    rest = sum(one.differ - one.corrected for one in seen.values())
    print(f"{sum(one.differ for one in seen.values())} calls differ, {rest} of them after the table's corrections")
    return {name: vars(one) for name, one in sorted(seen.items())}


def _bits(dtype: str, calls: Iterable[Sample]) -> dict[str, Any]:
    outcomes: dict[str, list[tuple[int, Outcome]]] = defaultdict(list)
    for sample in calls:
        outcomes[sample.name].append((sample.number, compared(sample)))
    kinds = Counter(one.kind for several in outcomes.values() for _, one in several)
    print(f"\n{dtype}: {len(outcomes)} operations, {sum(kinds.values())} samples: {dict(kinds)}")
    for kind in ("different", "fails", "refused"):
        for name, several in sorted(outcomes.items()):
            which = [(number, one.told) for number, one in several if one.kind == kind]
            if which:
                numbers = ", ".join(str(number) for number, _ in which)
                print(f"{kind:<10} {name:<40} samples {numbers}: {which[0][1][:300]}")
    return {name: [(number, one.kind, one.told) for number, one in several] for name, several in outcomes.items()}


if __name__ == "__main__":
    main()
