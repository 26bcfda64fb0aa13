"""Peak against extra operations and time: lowtide compared with torch's methods to save memory, on one model.

    python -m benchmarks.frontier MODEL [--rounds 9] [--costs flops|measured] [--json FILE] [--picture FILE.png]

MODEL is one of benchmarks/networks.py; `--all` takes them all in turn. The peers are eager, checkpointing of every
block and of every n, selective checkpointing, mixtures, and torch's memory budget on `aot_eager`. lowtide runs at each
of their measured peaks and at budgets of its own. All run in one process, on the same parameters and data, in training
mode with default dropout. Peaks are bytes above the start of the step, measured to the byte. Times are medians over
rounds of each method's time divided by eager's in the same round. Operations are counted as they run. Returns 1 if a
plan of lowtide's fails: gradients unlike eager's, a peak unlike the predicted one, an error.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.frontier import compile as compiling
from benchmarks.frontier.domination import dominations, lowtide_failures
from benchmarks.frontier.peers import checkpointing_peers
from benchmarks.frontier.picture import draw
from benchmarks.frontier.row import (
    LOWTIDE,
    Row,
    attempt,
    compare_flops,
    compare_seconds,
    error_text,
    measure,
    show_progress,
)
from benchmarks.frontier.step import Runner, Subject, result_of, runner_of, seconds_in_turn
from benchmarks.frontier.table import print_table
from benchmarks.frontier.with_lowtide import Planner, bound_curve, copy_measurements, lowtide_rows, range_of
from benchmarks.networks import NETWORKS, Network

_TORCH_BUDGETS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
_QUICK_TORCH_BUDGETS = (1.0, 0.1)
_OWN_BUDGETS = 12
_QUICK_OWN_BUDGETS = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and save; return 1 if a plan of lowtide's failed."""
    options = _options(arguments)
    reports = []
    for name in NETWORKS if options.all else [options.model]:
        report = frontier(NETWORKS[name], options)
        print_table(report)
        reports.append(report)
        if options.picture:
            path = options.picture.with_stem(f"{options.picture.stem}-{name}") if options.all else options.picture
            draw(report, path)
        if options.json:
            options.json.write_text(json.dumps({"models": [_plain(report) for report in reports]}, indent=1) + "\n")
    return 1 if any(report["failures"] for report in reports) else 0


class Evaluator:
    """Measures the rows of one network; keeps them and their runners."""

    def __init__(self, network: Network, options: argparse.Namespace) -> None:
        model, batch = network.build(options.quick)
        self.network, self.options = network, options
        self.subject = Subject(model, batch, options.gradients == "present")
        self.rows: list[Row] = []
        self.runners: dict[str, Runner] = {}
        self.reference = result_of(self.subject, self._eager())

    def _eager(self) -> Runner:
        return runner_of("eager", "eager", self.subject.shadow_copy(), self.subject.batch)

    def add(self, row: Row, runner: Runner | None) -> None:
        """Measure a row, and keep its runner for timing if it runs."""
        show_progress(f"{self.network.name}: {row.name}")
        if runner is not None:
            with compiling.nothing_compiled_again():
                measure(self.subject, runner, self.reference, row)
            if row.failure is None:
                self.runners[row.name] = runner
        copy_measurements(row, self.rows)
        self.rows.append(row)
        compare_flops(row, self.rows[0])

    def add_peers(self) -> None:
        """Add eager and all that lowtide is compared with."""
        self.add(Row("eager", "eager"), self._eager())
        if not self.network.chained:
            reason = "not measured: its blocks hand on more than one value"
            self.add(Row("checkpoint every n blocks", "checkpoint", failure=reason), None)
        for make in checkpointing_peers(self.network, self.subject):
            self.add(*attempt(make, "checkpointing", "checkpoint"))
        compiling.start_afresh()
        for share in _QUICK_TORCH_BUDGETS if self.options.quick else _TORCH_BUDGETS:
            name = f"torch memory budget {share:g}"
            show_progress(f"{self.network.name}: compiling with {name}")
            make = functools.partial(compiling.budget_peer, self.subject, share, name)
            self.add(*attempt(make, name, compiling.KIND))

    def add_lowtide(self) -> dict[str, Any]:
        """Add lowtide at the peaks of all rows so far and at budgets of its own; return figures for all budgets."""
        try:
            planner = Planner(self.subject, self.options.costs)
            span = range_of(planner)
        except Exception as error:  # a network that lowtide cannot plan is a finding, not the end
            self.add(Row(LOWTIDE, LOWTIDE, failure=error_text(error)), None)
            return {"resident_bytes": None, "bound": []}
        count = _QUICK_OWN_BUDGETS if self.options.quick else _OWN_BUDGETS
        budgets: dict[int, list[str]] = {budget_bytes: [] for budget_bytes in span.spread(count)}
        for row in self.rows:
            if row.peak_bytes is not None:
                budgets.setdefault(row.peak_bytes, []).append(row.name)
        for row, runner in lowtide_rows(planner, span, budgets):
            self.add(row, runner)
        return {
            "resident_bytes": span.resident_bytes,
            "first_planning_seconds": span.planning_seconds,
            "first_solve_seconds": span.plan.solve_seconds,
            "bound": bound_curve(span),
        }

    def time(self) -> None:
        """Time all runners in turn."""
        show_progress(f"{self.network.name}: {len(self.runners)} steps in turn, {self.options.rounds} rounds")
        with compiling.nothing_compiled_again():
            seconds = seconds_in_turn(self.subject, list(self.runners.values()), self.options.rounds)
        for row in self.rows:
            row.seconds = seconds.get(row.same_plan_as or row.name, [])
            compare_seconds(row, self.rows[0])
        show_progress("")


def frontier(network: Network, options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything about one network."""
    evaluator = Evaluator(network, options)
    evaluator.add_peers()
    lowtide_figures = evaluator.add_lowtide()
    evaluator.time()
    return _report(network, options, evaluator.rows, lowtide_figures)


def _report(
    network: Network, options: argparse.Namespace, rows: list[Row], lowtide_figures: dict[str, Any]
) -> dict[str, Any]:
    return {
        "model": network.name,
        "description": "a small one" if options.quick else network.description,
        "costs": options.costs,
        "gradients": options.gradients,
        "rounds": options.rounds,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **lowtide_figures,
        "rows": rows,
        "domination": dominations(rows, options.costs),
        "failures": lowtide_failures(rows),
    }


def _plain(report: dict[str, Any]) -> dict[str, Any]:
    """Convert the report to types that JSON knows."""
    rows = [{**asdict(row), "gap_share": row.gap_share} for row in report["rows"]]
    return {**report, "rows": rows, "domination": [asdict(domination) for domination in report["domination"]]}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=NETWORKS, help="which network")
    parser.add_argument("--all", action="store_true", help="all networks in turn")
    parser.add_argument("--rounds", type=int, default=9, help="rounds in which each runs once, in turn")
    parser.add_argument(
        "--costs", choices=("flops", "measured"), default="flops", help="the costs that lowtide plans with"
    )
    parser.add_argument("--gradients", choices=("present", "absent"), default="present", help=".grad at the start")
    parser.add_argument("--json", type=Path, help="where to write everything measured")
    parser.add_argument("--picture", type=Path, help="where to draw the frontier; with --all one for each network")
    parser.add_argument("--quick", action="store_true", help="small networks and few budgets, to see that it works")
    options = parser.parse_args(arguments)
    if options.all == bool(options.model):
        parser.error("name one model, or pass --all")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    warnings.simplefilter("ignore")  # transformers renames things, dynamo ignores things
    transformers.logging.set_verbosity_error()
    return options


if __name__ == "__main__":
    sys.exit(main())
