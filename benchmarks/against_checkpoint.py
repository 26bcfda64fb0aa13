"""lowtide at the measured peak of `gradient_checkpointing_enable()` and below, compared with it and with eager.

    python -m benchmarks.against_checkpoint [--pairs 9] [--json FILE]

GPT-2, 6 layers, d 384, T 256, B 8, vocabulary 8000, default dropout. All three run in one process, in turn. Times are
medians over rounds of each method's time divided by eager's in the same round. Peaks are bytes above the start of the
step, gradients absent, measured to the byte. Each peer runs in its own best case: `model(**batch).loss.backward()`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import lowtide
import torch
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.text.byte_sizes import format_bytes

from benchmarks.eager_baseline import (
    error_text,
    gradient_error,
    peak_bytes,
    ratio_text,
    resident_bytes,
    rounds_text,
    time_ratios,
)

MIB = 2**20


def main() -> None:
    """Measure and print a table."""
    options = _options()
    model = build_model("gpt2-small-cpu").train()
    model.config.use_cache = False
    batch = sample_batch(model, 8, 256)
    checkpointed = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames it in its next version
        checkpointed.gradient_checkpointing_enable()
    before_bytes = resident_bytes(model, batch)
    peaks = {"eager": peak_bytes(model, batch), "checkpoint every layer": peak_bytes(checkpointed, batch)}
    runners: dict[str, Any] = {"eager": model, "checkpoint every layer": checkpointed}
    predicted: dict[str, float] = {}
    same_peak = before_bytes + peaks["checkpoint every layer"]
    budgets: dict[str, tuple[int | str, str]] = {
        "lowtide, 100 %": ("100%", "bitwise"),
        "lowtide, 330 MiB": (before_bytes + 330 * MIB, "bitwise"),
        "lowtide, same peak": (same_peak, "bitwise"),
        "rounding, 330 MiB": (before_bytes + 330 * MIB, "rounding"),
        "rounding, same peak": (same_peak, "rounding"),
        "rounding, 110 MiB": (before_bytes + 110 * MIB, "rounding"),
    }
    for name, (budget, fidelity) in budgets.items():
        small = lowtide.rewrite(copy.deepcopy(model), budget, kwargs=batch, outputs=["loss"], fidelity=fidelity)
        runners[name] = small
        peaks[name] = peak_bytes(small, batch)
        predicted[name] = small.plan.extra_share
    ratios = time_ratios(runners, batch, options.pairs)
    errors = {name: gradient_error(model, runner, batch) for name, runner in runners.items()}
    rows = [
        {
            "name": name,
            "peak_bytes": peaks[name],
            "time_ratio": statistics.median(ratios[name]),
            "time_ratio_quartiles": statistics.quantiles(ratios[name], n=4)[::2],
            "predicted_time_ratio": 1 + predicted[name] if name in predicted else None,
            "gradient_error": errors[name],
        }
        for name in runners
    ]
    _print(rows, ratios, options.pairs)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="rounds in which each runs once, in turn")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    return parser.parse_args()


def _print(rows: list[dict[str, Any]], ratios: dict[str, list[float]], rounds: int) -> None:
    print(f"{'':<24} {'peak above start':>17} {'step time / eager':>26} {'predicted':>10}  gradients")
    for row in rows:
        predicted = f"{row['predicted_time_ratio']:.2f}" if row["predicted_time_ratio"] else ""
        print(
            f"{row['name']:<24} {format_bytes(row['peak_bytes']):>17} "
            f"{ratio_text(ratios[row['name']]):>26} {predicted:>10}  {error_text(row['gradient_error'])}"
        )
    print(rounds_text(rounds))


if __name__ == "__main__":
    sys.exit(main())
