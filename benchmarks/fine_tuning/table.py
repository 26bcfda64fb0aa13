"""Prints the measurements of fine-tuning with approximate gradients, one line for each setting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_HEADS = (
    f"{'accuracy, %':>12} {'- exact':>12} {'loss':>15} {'kept':>6} {'peak':>6} {'time':>5} {'added':>8} {'values':>6}"
)


def print_table(report: Mapping[str, Any]) -> None:
    """Print a report of `fine_tuning`, and how it was measured."""
    train_samples, test_samples = report["samples"]
    exact_epochs, epochs = report["epochs"]
    print(f"{report['description']}: {train_samples} samples, {test_samples} held out, batch {report['batch_size']}")
    start = spread_text([100 * accuracy for accuracy in report["start"]], 1)
    print(f"exact epochs: {exact_epochs}, to {start} %; then with each setting: {epochs}; seeds: {report['seeds']}")
    print(f"{'':<20} {_HEADS}")
    exact, eager = report["rows"][0], report["eager"]
    for row in report["rows"]:
        text = _format_row(row, exact) if row["accuracies"] else "   no value of this step has such a code"
        print(f"{row['name']:<20} {text}")
    text = f"exact: {exact['kept_bytes']:,} bytes kept, peak {exact['peak_bytes']:,}"
    print(f"{text}; eager: peak {eager['peak_ratio']:.1%}, time {eager['time_ratio']:.2f}")
    print(f"times: medians over {report['rounds']} rounds; torch {report['torch']}, threads: {report['threads']}")


def _format_row(row: Mapping[str, Any], exact: Mapping[str, Any]) -> str:
    accuracies = spread_text([100 * accuracy for accuracy in row["accuracies"]], 1)
    against_exact = "" if row is exact else spread_text(points_against_exact(row, exact), 1)
    ratios = f"{row['kept_ratio']:>6.1%} {row['peak_ratio']:>6.1%} {row['time_ratio']:>5.2f}"
    losses = spread_text(row["losses"], 3)
    return f"{accuracies:>12} {against_exact:>12} {losses:>15} {ratios} {row['added']:>8.2g} {row['encoded']:>6}"


def points_against_exact(row: Mapping[str, Any], exact: Mapping[str, Any]) -> list[float]:
    """Return for each seed the percentage points of accuracy above exact gradients from the same start."""
    return [100 * (own - other) for own, other in zip(row["accuracies"], exact["accuracies"], strict=True)]


def spread_text(numbers: Sequence[float], digits: int) -> str:
    """Format mean ± standard deviation of a sample, or the number alone if there is only one."""
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean
