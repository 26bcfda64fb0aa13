"""Codes and recomputation chosen together, beside each by itself, at the same measured peaks.

    python -m benchmarks.joint_planning [NAME ...] [--error-budget 0.01] [--json FILE]

For budgets from loose to tight: lowtide with "rounding" (recomputation and exact codes alone), lowtide with
"approximate" (both, in one problem, within the error budget), and codes alone: every value in the same number of bits,
the most with which the step fits. Extra time is predicted from FLOPs (`costs="flops"`, codecs for next to nothing) and
measured as the median of ratios to eager's step; the error is ‖ĝ − g‖² / ‖g‖² against eager's gradient, with the same
random numbers; peaks are measured, above the start of the step.
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
from lowtide.rewriter.batches import sample_batch
from lowtide.rewriter.errors import InfeasibleBudget
from lowtide.rewriter.models import build_model

from benchmarks.all_encoded import all_encoded, named
from benchmarks.beside_eager import gradient_error, peak_bytes, resident_bytes, time_ratios

MIB = 2**20
_ENCODER = {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8}
MODELS: Mapping[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 4, "n_embd": 256, "n_head": 8, "vocab_size": 2500},
    "llama": {**_ENCODER, "intermediate_size": 688, "vocab_size": 2500},
}
_SHARES = (0.5, 0.35, 0.25, 0.22, 0.19, 0.16, 0.13)  # of what eager's step peaks at above its start
_BITS = (8, 4, 3, 2)
_ROUNDS = 5


def main() -> None:
    """Measures and prints a table per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(MODELS)} (default: all)")
    parser.add_argument("--error-budget", type=float, default=0.01, help="as a share of the gradient's own variance")
    parser.add_argument("--json", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()
    told = {name: rows_of(name, options.error_budget) for name in options.names or MODELS}
    if options.json:
        options.json.write_text(json.dumps(told, indent=1) + "\n")


def rows_of(name: str, error_budget: float) -> list[dict[str, Any]]:
    """The table of one model, printed."""
    torch.manual_seed(0)
    model: Any = build_model(name, overrides=MODELS[name]).train()
    model.config.use_cache = False
    batch = sample_batch(model, 8, 256)
    bench = _Bench(model, batch, error_budget)
    print(f"{name}: eager peaks at {bench.peak_bytes / MIB:.1f} MiB above the start")
    print(f"{'budget, MiB':>11} {'how':<28} {'peak':>7} {'extra':>7} {'time / eager':>13} {'error²':>8} {'added':>8}")
    rows = []
    for share in _SHARES:
        budget_bytes = int(share * bench.peak_bytes)
        for how in ("recomputation alone", "together", "codes alone"):
            rows.append({"model": name, "budget_bytes": budget_bytes, "how": how} | bench.row(how, budget_bytes))
    return rows


class _Bench:
    """One model and what is compared on it."""

    def __init__(self, model: Any, batch: dict[str, torch.Tensor], error_budget: float) -> None:
        self.model, self.batch, self.error_budget = model, batch, error_budget
        self.peak_bytes = peak_bytes(model, batch)
        self.coded = {  # what attention exponentiates has 6 bits at least
            bits: all_encoded(model, batch, named(f"{bits}-bit groups"), named("6-bit groups"))[0] for bits in _BITS
        }
        self.coded_peaks = {bits: peak_bytes(small, batch) for bits, small in self.coded.items()}

    def row(self, how: str, budget_bytes: int) -> dict[str, Any]:
        """One line, printed."""
        small, told = self._rewritten(how, budget_bytes)
        if small is None:
            print(f"{budget_bytes / MIB:>11.1f} {told:<28}", flush=True)
            return {"told": told}
        plan = small.plan
        ratios = time_ratios({"eager": self.model, how: small}, self.batch, _ROUNDS)
        found = {
            "told": told,
            "peak_bytes": peak_bytes(small, self.batch),
            "extra_share": plan.extra_share,
            "time_ratio": statistics.median(ratios[how]),
            "squared_error": gradient_error(self.model, small, self.batch, seed=1) ** 2,
            "added": plan.encoding_error,
        }
        print(
            f"{budget_bytes / MIB:>11.1f} {told:<28} {found['peak_bytes'] / MIB:>7.1f} {found['extra_share']:>7.1%} "
            f"{found['time_ratio']:>13.3f} {found['squared_error']:>8.1e} {found['added']:>8.2%}",
            flush=True,
        )
        return found

    def _rewritten(self, how: str, budget_bytes: int) -> tuple[Any, str]:
        if how == "codes alone":
            fitting = [bits for bits in _BITS if self.coded_peaks[bits] <= budget_bytes]
            return (self.coded[fitting[0]], f"codes alone, {fitting[0]} bits") if fitting else (None, "codes alone: no")
        options: dict[str, Any] = {"outputs": ["loss"], "costs": "flops", "fidelity": "rounding"}
        if how == "together":
            options |= {"fidelity": "approximate", "error_budget": self.error_budget}
        try:
            total = budget_bytes + resident_bytes(self.model, self.batch)
            return lowtide.rewrite(copy.deepcopy(self.model), total, (), self.batch, **options), how
        except InfeasibleBudget:
            return None, f"{how}: no"


if __name__ == "__main__":
    sys.exit(main())
