"""The planner compared with one integer program for a whole small step: three blocks, at loose and tight budgets.

    python -m benchmarks.checkmate_gap [NAME ...] [--json FILE]

Each step is planned by `rockmate` and by the whole portfolio, and solved as one integer program (`checkmate`). Seconds
are FLOPs (`costs="flops"`); extra time is a share of the step's time. `proven` is a lower bound on the schedules that
the integer program describes: an operation runs at most once in each gap between operations that run once. `bound` is
the lower bound that every plan states, for any schedule at all.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowtide.rewriter.models.batches import sample_batch
from lowtide.rewriter.models.build import build_model
from lowtide.rewriter.plan.options import Options
from lowtide.rewriter.plan.planner import StepPlanner
from lowtide.solvers.checkmate import Checkmate
from lowtide.solvers.portfolio import Portfolio
from lowtide.solvers.problem.problem import Problem
from torch import nn

from benchmarks.frontier.models import llama_style

_SHARES = (0.8, 0.6, 0.4, 0.2, 0.1)  # of the bytes between the smallest peak and that of the fastest plan
_MOST_CHOICES = 12_000
_NODES = 500
_RESNET = {"depths": [1, 1, 1], "hidden_sizes": [64, 128, 256], "embedding_size": 32, "num_labels": 10}
_VIT = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 512}


def _from_transformers(name: str, batch: int, length: int, **overrides: Any) -> tuple[nn.Module, Any]:
    model = build_model(name, overrides=overrides)
    return model, sample_batch(model, batch, length)


STEPS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "llama-style": lambda: llama_style(blocks=3, width=128, batch=4, tokens=256),
    "resnet": lambda: _from_transformers("resnet", 4, 64, **_RESNET),
    "vit": lambda: _from_transformers("vit", 4, 64, image_size=64, patch_size=8, **_VIT),
}


@dataclass(frozen=True)
class Row:
    """The extra shares of the step's time at one budget, and the seconds that the integer program took."""

    budget_bytes: int
    rockmate: float
    portfolio: float
    optimum: float
    proven: float
    bound: float
    seconds: float


def main() -> None:
    """Print a table per step, and the mean and the worst distance to the proven optimum."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(STEPS)} (default: all)")
    parser.add_argument("--json", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()
    for name in options.names:
        if name not in STEPS:
            parser.error(f"there is no step {name!r}: choose among {', '.join(STEPS)}")
    tables: dict[str, list[dict[str, Any]]] = {}
    above: list[float] = []
    for name in options.names or STEPS:
        problem = problem_of(*STEPS[name]())
        print(f"{name}, {len(problem.ops)} operations: extra time, % of the step's")
        print("     budget   rockmate  portfolio  checkmate  proven   bound   checkmate took, s")
        tables[name] = []
        for row in rows_of(problem):
            tables[name].append(asdict(row))
            if not math.isnan(row.optimum):
                above.append(row.rockmate - row.optimum)
            print(
                f"{row.budget_bytes / 2**20:>7.1f} MiB   {row.rockmate:>8.2%} {row.portfolio:>10.2%} "
                f"{row.optimum:>10.2%} {row.proven:>7.2%} {row.bound:>7.2%}   {row.seconds:>17.1f}",
                flush=True,
            )
    print(f"rockmate above checkmate: {sum(above) / len(above):.2%} of a step on average, {max(above):.2%} at worst")
    if options.json:
        options.json.write_text(json.dumps(tables, indent=1) + "\n")


def problem_of(model: nn.Module, batch: Any) -> Problem:
    """Return the scheduling problem of a step, with FLOPs as costs."""
    planner, present = StepPlanner.of(model, (), batch, Options(costs="flops"))
    return planner.variants(present).as_captured.problem


def rows_of(problem: Problem, shares: tuple[float, ...] = _SHARES) -> list[Row]:
    """Return a row per budget, from loose to tight."""
    portfolio = Portfolio(cache=None)
    plans = portfolio.frontier(problem, 100)
    low, high = plans[-1].peak_bytes, plans[0].peak_bytes
    rows = []
    for share in shares:
        budget_bytes = int(low + (high - low) * share)
        started = time.perf_counter()
        optimum = Checkmate(most_choices=_MOST_CHOICES, node_limit=_NODES).least_seconds(problem, budget_bytes)
        seconds = time.perf_counter() - started
        chosen = portfolio.solve(problem, budget_bytes)
        rockmate = portfolio.solve(problem, budget_bytes, "rockmate")
        best = optimum.seconds if optimum.order is not None else math.nan
        rows.append(
            Row(
                budget_bytes,
                rockmate.extra_share,
                chosen.extra_share,
                best / problem.seconds - 1,
                optimum.least_seconds / problem.seconds - 1,
                (chosen.lower_bound_seconds or 0.0) / problem.seconds,
                seconds,
            )
        )
    return rows


if __name__ == "__main__":
    main()
