"""How long planning takes: GPT-2 the first and the second time, and Llama-70B without its weights.

    python -m benchmarks.planning_time [--json FILE]

Each case is a process of its own: `gpt2` (12 layers, B 4, T 256, budget 60 %) with an empty cost cache and again with
the cache it left; `llama-70b` (80 layers, d 8192, T 4096, B 4) on the meta device for one H200, budget 60 %. Imports
and building the model are not counted, capturing, measuring, solving and emitting are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {
    "gpt2, first time": {"model": "gpt2", "batch": 4, "sequence": 256, "device": None},
    "gpt2, second time": {"model": "gpt2", "batch": 4, "sequence": 256, "device": None},
    "llama-70b on meta": {"model": "llama-70b", "batch": 4, "sequence": 4096, "device": "h200-141gb"},
}


def main() -> None:
    """Runs the cases and prints a table; with a case as argument runs just that one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(_run(CASES[options.case])))
        return
    with tempfile.TemporaryDirectory() as cache:
        rows = {name: _in_process(name, cache) for name in CASES}
    print(f"{'':<20} {'planning':>9} {'solving':>9} {'host memory':>12} {'peak / all kept':>16} {'extra time':>11}")
    for name, row in rows.items():
        print(
            f"{name:<20} {row['planning_seconds']:>7.1f} s {row['solve_seconds']:>7.1f} s "
            f"{row['host_bytes'] / 2**30:>8.2f} GiB {row['peak_share']:>16.1%} {row['extra_share']:>11.1%}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _in_process(name: str, cache: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.planning_time", "--case", name]
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _run(case: dict[str, Any]) -> dict[str, Any]:
    import lowtide
    from lowtide.rewriter.batches import sample_batch
    from lowtide.rewriter.models import build_model

    model = build_model(case["model"], meta=case["device"] is not None)
    batch = sample_batch(model, case["batch"], case["sequence"])
    started = time.perf_counter()
    if case["device"]:
        plan = lowtide.plan(model, "60%", kwargs=batch, costs="roofline", device=case["device"])
    else:
        plan = lowtide.rewrite(model, "60%", kwargs=batch).plan
    return {
        "planning_seconds": time.perf_counter() - started,
        "solve_seconds": plan.solve_seconds,
        "host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "peak_share": plan.peak_bytes / plan.baseline_peak_bytes,
        "extra_share": plan.extra_share,
    }


if __name__ == "__main__":
    main()
