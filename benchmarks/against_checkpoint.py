"""lowtide at the measured peak of `gradient_checkpointing_enable()` and below, side by side with it and with eager.

    python -m benchmarks.against_checkpoint [--pairs 9] [--json FILE]

GPT-2, 6 layers, d 384, T 256, B 8, vocabulary 8000, default dropout. All three run in one process, in turn; times are
medians over rounds of each one's time divided by eager's in the same round. Peaks are bytes above the start of the
step, gradients absent, measured to the byte. Each peer runs in its own best case: `model(**batch).loss.backward()`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lowtide
import torch
from lowtide.rewriter.batches import sample_batch
from lowtide.rewriter.bytes_text import format_bytes
from lowtide.rewriter.models import build_model

MIB = 2**20


def main() -> None:
    """Measures and prints a table."""
    options = _options()
    model = build_model("gpt2-small-cpu").train()
    model.config.use_cache = False
    batch = sample_batch(model, 8, 256)
    checkpointed = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers renames it in its next version
        checkpointed.gradient_checkpointing_enable()
    resident_bytes = _resident_bytes(model, batch)
    peaks = {"eager": _peak(model, batch), "checkpoint every layer": _peak(checkpointed, batch)}
    runners: dict[str, Any] = {"eager": model, "checkpoint every layer": checkpointed}
    predicted: dict[str, float] = {}
    same_peak = resident_bytes + peaks["checkpoint every layer"]
    budgets: dict[str, tuple[int | str, str]] = {
        "lowtide, 100 %": ("100%", "bitwise"),
        "lowtide, 330 MiB": (resident_bytes + 330 * MIB, "bitwise"),
        "lowtide, same peak": (same_peak, "bitwise"),
        "rounding, 330 MiB": (resident_bytes + 330 * MIB, "rounding"),
        "rounding, same peak": (same_peak, "rounding"),
        "rounding, 110 MiB": (resident_bytes + 110 * MIB, "rounding"),
    }
    for name, (budget, fidelity) in budgets.items():
        small = lowtide.rewrite(copy.deepcopy(model), budget, kwargs=batch, outputs=["loss"], fidelity=fidelity)
        runners[name] = small
        peaks[name] = _peak(small, batch)
        predicted[name] = small.plan.extra_share
    ratios = _time(runners, batch, options.pairs)
    errors = {name: _gradient_error(model, runner, batch) for name, runner in runners.items()}
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
    _print(rows, options.pairs)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="rounds in which each runs once, in turn")
    parser.add_argument("--json", type=Path, help="where to write the table as JSON")
    return parser.parse_args()


def _step(model: Any, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    return lambda: model(**batch).loss.backward()


def _clear(model: Any) -> None:
    for parameter in model.parameters():
        parameter.grad = None


def _peak(model: Any, batch: dict[str, torch.Tensor]) -> int:
    _clear(model)
    peak_bytes = lowtide.measure_peak(_step(model, batch))
    _clear(model)
    return peak_bytes


def _resident_bytes(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> int:
    tensors = [*model.parameters(), *model.buffers(), *batch.values()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def _time(runners: dict[str, Any], batch: dict[str, torch.Tensor], rounds: int) -> dict[str, list[float]]:
    """For each runner the ratios to eager, one per round."""
    ratios: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds + 1):
        seconds = {}
        for name, model in runners.items():
            _clear(model)
            step = _step(model, batch)
            started = time.perf_counter()
            step()
            seconds[name] = time.perf_counter() - started
            _clear(model)
        if number:  # the first round warms up
            for name in runners:
                ratios[name].append(seconds[name] / seconds["eager"])
    return ratios


def _gradient_error(model: Any, other: Any, batch: dict[str, torch.Tensor]) -> float:
    """‖ĝ − g‖ / ‖g‖ over all gradients, with the same random numbers; 0 if they are eager's bit for bit."""
    told = []
    for one in (model, other):
        _clear(one)
        torch.manual_seed(0)
        _step(one, batch)()
        told.append([p.grad.double() for p in one.parameters()])
    squares = [((a - b).square().sum(), a.square().sum()) for a, b in zip(*told, strict=True)]
    _clear(model)
    _clear(other)
    return float((sum(one for one, _ in squares) / sum(one for _, one in squares)) ** 0.5)


def _print(rows: list[dict[str, Any]], rounds: int) -> None:
    print(f"{'':<24} {'peak above start':>17} {'step time / eager':>26} {'predicted':>10}  gradients")
    for row in rows:
        low, high = row["time_ratio_quartiles"]
        predicted = f"{row['predicted_time_ratio']:.2f}" if row["predicted_time_ratio"] else ""
        print(
            f"{row['name']:<24} {format_bytes(row['peak_bytes']):>17} "
            f"{row['time_ratio']:>11.3f} ({low:.3f}–{high:.3f}) {predicted:>10}  "
            f"{'equal' if row['gradient_error'] == 0 else format(row['gradient_error'], '.1e')}"
        )
    threads = torch.get_num_threads()
    print(f"medians (quartiles) over {rounds} rounds, all in turn; torch {torch.__version__}, {threads} threads")


if __name__ == "__main__":
    sys.exit(main())
