"""Codes and recomputation chosen together, compared with each alone, at the same measured peaks.

    python -m benchmarks.approximate.joint_planning [NAME ...] [--error-budget 0.01] [--rounds 9] [--json FILE]

For budgets from loose to tight: lowtide with "rounding" (recomputation and exact codes alone), lowtide with
"approximate" (both, in one problem, within the error budget), and codes alone: every value in the same number of bits,
the most with which the step fits. Plans are made as users' are, with the seconds that kernels and codecs take on this
machine. Steps are timed in turn, eager's and those of one budget. "/ recomputation" is the median of the ratios to the
step with recomputation alone, with quartiles. "again" counts matrix products and attentions run twice. The error is
‖ĝ − g‖² / ‖g‖² against eager's gradient, with the same random numbers. Peaks are measured, above the start of the step.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lowtide
import torch
from lowtide.rewriter.errors import InfeasibleBudget
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model

from benchmarks.approximate.force_encoded import all_encoded, named
from benchmarks.approximate.kept_bytes import products_again
from benchmarks.eager_baseline import gradient_error, peak_bytes, ratio_text, resident_bytes, rounds_text, time_ratios

MIB = 2**20
_ENCODER = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
MODELS: Mapping[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 4, "n_embd": 256, "n_head": 8, "vocab_size": 2500},
    "llama": {**_ENCODER, "intermediate_size": 688, "vocab_size": 2500},
}
_SHARES = (0.3, 0.25, 0.22, 0.19, 0.175, 0.16, 0.145, 0.13)  # of the peak of eager's step above its start
_BITS = (8, 4, 3, 2)
_METHODS = ("recomputation alone", "together", "codes alone")


def main() -> None:
    """Measure and print a table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(MODELS)} (default: all)")
    parser.add_argument("--error-budget", type=float, default=0.01, help="as a share of the gradient's own variance")
    parser.add_argument("--rounds", type=int, default=9, help="of steps in turn, per budget")
    parser.add_argument("--json", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds {options.rounds} has no quartiles: pass 2 at least")
    reports = {name: rows_of(name, options.error_budget, options.rounds) for name in options.names or MODELS}
    print(rounds_text(options.rounds))
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")


def rows_of(name: str, error_budget: float, rounds: int) -> list[dict[str, Any]]:
    """Print the table of one model and return its rows."""
    torch.manual_seed(0)
    model: Any = build_model(name, overrides=MODELS[name]).train()
    model.config.use_cache = False
    evaluator = _Evaluator(model, sample_batch(model, 8, 256), error_budget)
    print(f"{name}: eager peaks at {evaluator.peak_bytes / MIB:.1f} MiB above the start")
    print(
        f"{'budget, MiB':>11} {'how':<20} {'peak':>6} {'again':>5} {'/ eager':>7} {'/ recomputation':>21}"
        f" {'error²':>8} {'added':>7}"
    )
    return [row for share in _SHARES for row in evaluator.rows(int(share * evaluator.peak_bytes), rounds)]


class _Evaluator:
    """One model and the methods that are compared on it."""

    def __init__(self, model: Any, batch: dict[str, torch.Tensor], error_budget: float) -> None:
        self.model, self.batch, self.error_budget = model, batch, error_budget
        self.peak_bytes = peak_bytes(model, batch)
        self.coded = {  # values that attention exponentiates have 6 bits at least
            bits: all_encoded(model, batch, named(f"{bits}-bit groups"), named("6-bit groups"))[0] for bits in _BITS
        }
        self.coded_peaks = {bits: peak_bytes(small, batch) for bits, small in self.coded.items()}

    def rows(self, budget_bytes: int, rounds: int) -> list[dict[str, Any]]:
        """Print the lines of one budget and return its rows."""
        models = {method: self._rewritten(method, budget_bytes) for method in _METHODS}
        runners = {method: small for method, small in models.items() if small is not None}
        ratios = time_ratios({"eager": self.model} | runners, self.batch, rounds)
        return [self._row(method, budget_bytes, models[method], ratios) for method in _METHODS]

    def _row(self, method: str, budget_bytes: int, small: Any, ratios: Mapping[str, list[float]]) -> dict[str, Any]:
        row = {"budget_bytes": budget_bytes, "how": method}
        if small is None:
            print(f"{budget_bytes / MIB:>11.1f} {method + ': no':<20}", flush=True)
            return row
        row |= {
            "peak_bytes": peak_bytes(small, self.batch),
            "products_again": products_again(small.plan),
            "time_ratio": statistics.median(ratios[method]),
            "squared_error": gradient_error(self.model, small, self.batch, seed=1) ** 2,
            "added": small.plan.encoding_error,
        }
        against = ""
        if _METHODS[0] in ratios and method != _METHODS[0]:
            pairs = zip(ratios[method], ratios[_METHODS[0]], strict=True)
            paired_ratios = [own / recomputing for own, recomputing in pairs]
            row["recomputation_ratio"], against = statistics.median(paired_ratios), ratio_text(paired_ratios)
        print(
            f"{budget_bytes / MIB:>11.1f} {method:<20} {row['peak_bytes'] / MIB:>6.1f} {row['products_again']:>5} "
            f"{row['time_ratio']:>7.3f} {against:>21} {row['squared_error']:>8.1e} {row['added']:>7.2%}",
            flush=True,
        )
        return row

    def _rewritten(self, method: str, budget_bytes: int) -> Any:
        """Return the model that keeps the budget, or None if none does."""
        if method == "codes alone":
            return next((self.coded[bits] for bits in _BITS if self.coded_peaks[bits] <= budget_bytes), None)
        options: dict[str, Any] = {"outputs": ["loss"], "fidelity": "rounding"}
        if method == "together":
            options |= {"fidelity": "approximate", "error_budget": self.error_budget}
        try:
            total = budget_bytes + resident_bytes(self.model, self.batch)
            return lowtide.rewrite(copy.deepcopy(self.model), total, (), self.batch, **options)
        except InfeasibleBudget:
            return None


if __name__ == "__main__":
    sys.exit(main())
