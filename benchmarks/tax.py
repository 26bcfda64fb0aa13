"""The time of a step of lowtide compared with eager's where everything is kept: the overhead of lowtide itself.

    python -m benchmarks.tax [NAME ...] [--rounds 101] [--wall] [--json FILE]

Each model is rewritten at 100 % of its simulated peak, planned by operations (`costs="flops"`). A step is forward, loss
and backward, gradients absent before it, on one thread. Eager and lowtide run in turn, in a new random order each
round. A round times each over as many steps in a row as take 20 ms. Times are the process's CPU time, which leaves out
other work of the machine, or with --wall the clock's. "/ eager" is the median over rounds of lowtide's time divided by
eager's. Its interval holds the true median 19 times in 20 (by ranks).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lowtide
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.eager_baseline import clear_gradients
from benchmarks.frontier.models import Batch, llama_style

_ROUND_SECONDS = 0.02  # of each model, at least
_WARM_STEPS = 20
Clock = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """A model to time. build: returns it in training mode, with the keyword arguments of its forward."""

    description: str
    build: Callable[[], tuple[nn.Module, Batch]]


class Perceptron(nn.Module):
    """Two linear layers with a ReLU between them: little more than the call itself."""

    def __init__(self, width: int = 32, classes: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 2 * width), nn.Linear(2 * width, classes)

    def forward(self, x: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss for features [batch, width] and classes [batch]."""
        return {"loss": functional.cross_entropy(self.second(functional.relu(self.first(x))), target)}


def _perceptron() -> tuple[nn.Module, Batch]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Perceptron().train(), {"x": torch.randn(16, 32), "target": torch.randint(8, (16,))}


CASES: Mapping[str, Case] = {
    "perceptron": Case("two linear layers, 32 to 64 to 8, batch 16", _perceptron),
    "tiny": Case("Llama-style, 4 blocks, d 64, batch 2 × 32", lambda: llama_style(4, 64, 2, 32)),
    "small": Case("Llama-style, 4 blocks, d 256, batch 4 × 128", lambda: llama_style(4, 256, 4, 128)),
}


def main() -> None:
    """Time the cases and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(CASES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=101, help="rounds in which both run in turn")
    parser.add_argument("--wall", action="store_true", help="time by the clock instead of the process's CPU time")
    parser.add_argument("--json", type=Path, help="where to write the rows as JSON")
    options = parser.parse_args()
    if not set(options.names) <= CASES.keys():
        parser.error(f"unknown case among {options.names}: choose from {', '.join(CASES)}")
    if options.rounds < 6:
        parser.error(f"--rounds {options.rounds} has no interval: pass 6 at least")
    torch.set_num_threads(1)
    clock = time.perf_counter if options.wall else time.process_time
    print(
        f"{options.rounds} rounds; torch {torch.__version__}, 1 thread, {'the clock' if options.wall else 'CPU time'}; "
        "ms are medians of each"
    )
    print(f"{'step':<44} {'links':>5} {'eager ms':>9} {'lowtide ms':>10}  {'/ eager':<20}")
    rows = {name: _row(CASES[name], options.rounds, clock) for name in options.names or CASES}
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _row(case: Case, rounds: int, clock: Clock) -> dict[str, Any]:
    """Measure one case, print its figures and return them."""
    model, batch = case.build()
    small: Any = lowtide.rewrite(copy.deepcopy(model), "100%", kwargs=batch, costs="flops")
    seconds = _timed({"eager": model, "lowtide": small}, batch, rounds, clock)
    ratios = [own / eager for own, eager in zip(seconds["lowtide"], seconds["eager"], strict=True)]
    low, high = _interval(ratios)
    row = {
        "description": case.description,
        "links": _links(small),
        "eager_seconds": statistics.median(seconds["eager"]),
        "lowtide_seconds": statistics.median(seconds["lowtide"]),
        "ratio": statistics.median(ratios),
        "interval": [low, high],
    }
    print(
        f"{case.description:<44} {row['links']:>5} {1e3 * row['eager_seconds']:>9.3f} "
        f"{1e3 * row['lowtide_seconds']:>10.3f}  {row['ratio']:.3f} ({low:.3f}–{high:.3f})",
        flush=True,
    )
    return row


def _links(small: Any) -> int:
    """Return the number of nodes that the step has in autograd's graph."""
    (ready,) = [ready for step in small.lowtide.steps for ready in step.plans]
    return len(ready.program.links)


def _timed(runners: Mapping[str, nn.Module], batch: Batch, rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Return the seconds for a step of each, one number per round."""
    counts = {}
    for name, model in runners.items():
        _steps(model, batch, _WARM_STEPS, clock)
        counts[name] = max(1, math.ceil(_ROUND_SECONDS / _steps(model, batch, _WARM_STEPS, clock)))
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name in order.sample(list(runners), len(runners)):
            seconds[name].append(_steps(runners[name], batch, counts[name], clock))
    return seconds


def _steps(model: Any, batch: Batch, count: int, clock: Clock) -> float:
    """Return the seconds for a step, measured over `count` in a row."""
    started = clock()
    for _ in range(count):
        model(**batch)["loss"].backward()
        clear_gradients(model)
    return (clock() - started) / count


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the values between which the true median lies 19 times in 20, for any distribution."""
    ordered, count = sorted(values), len(values)
    tail, rank = 0.0, 0
    while (tail := tail + math.comb(count, rank) * 0.5**count) <= 0.025:
        rank += 1
    return ordered[max(rank - 1, 0)], ordered[-max(rank, 1)]


if __name__ == "__main__":
    sys.exit(main())
