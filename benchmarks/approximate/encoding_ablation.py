"""Plans that may keep values encoded, compared with plans that may not: extra operations at the same budgets.

    python -m benchmarks.approximate.encoding_ablation [--names gpt2 llama resnet] [--budgets 9] [--json FILE]

The problem of each step is built once per fidelity, with `costs="flops"` (codecs cost next to nothing then) and
`error_budget=0.01`. It is solved with its encodings (on), and with all of them taken away (off). The budgets are spread
evenly, by ratio, from the smallest that is met with encodings to everything kept. "rounding" has exact codes alone,
"approximate" all of them. "no" means that no plan fits. A line per fidelity counts the budgets at which on is at least
as good as off, and those at which it is better: fewer extra operations, or feasible where off is not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch
from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.plan.options import Options
from lowtide.rewriter.plan.planner import StepPlanner
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.errors import InfeasibleBudget
from lowtide.solvers.problem.plan import Plan
from lowtide.solvers.problem.problem import Problem
from torch import nn

MIB = 2**20
_FIDELITIES = ("rounding", "approximate")
_NOTHING = 1e-9  # of a step's operations; less is rounding of sums
_LITTLE = 5e-5  # less than this is not called better: bytes weigh a little too, and it is printed as equal


def _from_transformers(name: str, batch: int, length: int, **overrides: Any) -> tuple[nn.Module, Any]:
    model: Any = build_model(name, overrides=overrides).train()
    model.config.use_cache = False
    return model, sample_batch(model, batch, length)


_LLAMA = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
_RESNET = {"depths": [2, 2, 2], "hidden_sizes": [64, 128, 256], "embedding_size": 32, "num_labels": 10}
MODELS: Mapping[str, Callable[[], tuple[nn.Module, Any]]] = {
    "gpt2": lambda: _from_transformers("gpt2", 4, 128, n_layer=4, n_embd=128, n_head=4, vocab_size=1000),
    "llama": lambda: _from_transformers("llama", 4, 128, **_LLAMA, intermediate_size=344, vocab_size=1000),
    "resnet": lambda: _from_transformers("resnet", 4, 64, **_RESNET),
}


@dataclass(frozen=True)
class Row:
    """Extra operations at one budget, as shares of the step's, infinite where no plan fits; bytes above the start."""

    budget_bytes: int
    off: float
    on: float
    encoded: int
    added: float

    @property
    def is_at_least_as_good(self) -> bool:
        """Return whether on is at least as good as off."""
        return self.on <= self.off + _NOTHING

    @property
    def is_better(self) -> bool:
        """Return whether encodings save operations, or meet a budget that is not met without them."""
        return self.on < self.off - _LITTLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table per model and fidelity; return 1 if encodings made something worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", metavar="NAME", default=list(MODELS), help=f"of: {', '.join(MODELS)}")
    parser.add_argument("--budgets", type=int, default=9, help="2 at least")
    parser.add_argument("--json", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in MODELS]:
        parser.error(f"there is no model {unknown[0]!r}: choose among {', '.join(MODELS)}")
    if options.budgets < 2:
        parser.error(f"--budgets {options.budgets} is too few: give 2 at least, the smallest and everything kept")
    reports, worse = [], 0
    for name in options.names:
        model, batch = MODELS[name]()
        for fidelity in _FIDELITIES:
            rows = rows_of(problem_of(model, batch, fidelity), options.budgets)
            print(format_rows(name, fidelity, rows), flush=True)
            reports.append({"model": name, "fidelity": fidelity, "rows": [asdict(row) for row in rows]})
            worse += sum(not row.is_at_least_as_good for row in rows)
    if options.json:
        options.json.write_text(json.dumps(reports, indent=1) + "\n")
    return int(worse > 0)


def problem_of(model: nn.Module, batch: Mapping[str, torch.Tensor], fidelity: str) -> Problem:
    """Return the problem of a step whose only output is the loss."""
    planner, present = StepPlanner.of(model, (), dict(batch), Options(fidelity, ("loss",), costs="flops"))
    return planner.variants(present).as_captured.problem


def without_encodings(problem: Problem) -> Problem:
    """Return the same problem without encoding options."""
    return replace(problem, values=tuple(replace(value, encodings=()) for value in problem.values))


def rows_of(problem: Problem, count: int) -> list[Row]:
    """Return a row for each of `count` budgets, the largest first."""
    plain, portfolio = without_encodings(problem), Portfolio(cache=None)
    before = problem.resident_bytes
    plans = portfolio.frontier(problem, 2)
    low, high = plans[-1].peak_bytes - before, max(portfolio.frontier(plain, 2)[0].peak_bytes, plans[0].peak_bytes)
    ratio = ((high - before) / low) ** (1 / (count - 1))
    budgets = [high, *(before + round(low * ratio**power) for power in range(count - 2, 0, -1)), before + low]
    rows = []
    for budget_bytes in budgets:
        off, on = (_solved(portfolio, step, budget_bytes) for step in (plain, problem))
        rows.append(
            Row(
                budget_bytes - before,
                off.extra_share if off else inf,
                on.extra_share if on else inf,
                len(on.encoded) if on else 0,
                on.encoding_error if on else 0.0,
            )
        )
    return rows


def _solved(portfolio: Portfolio, problem: Problem, budget_bytes: int) -> Plan | None:
    try:
        return portfolio.solve(problem, budget_bytes)
    except InfeasibleBudget:
        return None


def format_rows(name: str, fidelity: str, rows: Sequence[Row]) -> str:
    """Format the rows and a summary."""
    lines = [f"{name}, {fidelity}: budget above the start, extra operations"]
    lines.append(f"{'MiB':>10} {'off':>9} {'on':>9} {'encoded':>8} {'added':>7}")
    for row in rows:
        off, on = ("no" if share == inf else f"{share:.2%}" for share in (row.off, row.on))
        lines.append(f"{row.budget_bytes / MIB:>10.2f} {off:>9} {on:>9} {row.encoded:>8} {row.added:>7.2%}")
    as_good, better = sum(row.is_at_least_as_good for row in rows), sum(row.is_better for row in rows)
    lines.append(f"at least as good at {as_good} of {len(rows)}, strictly better at {better}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
