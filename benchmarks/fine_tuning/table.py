"""Prints what fine-tuning with approximate gradients was measured to do, one line for each setting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_HEADS = (
    f"{'accuracy, %':>12} {'- exact':>12} {'loss':>15} {'kept':>6} {'peak':>6} {'time':>5} {'added':>8} {'values':>6}"
)


def print_table(report: Mapping[str, Any]) -> None:
    """A report of `fine_tuning`, and how it was measured."""
    train_samples, test_samples = report["samples"]
    exact_epochs, epochs = report["epochs"]
    print(f"{report['told']}: {train_samples} samples, {test_samples} held out, batch {report['batch_size']}")
    start = spread_text([100 * one for one in report["start"]], 1)
    print(f"exact epochs: {exact_epochs}, to {start} %; then with each setting: {epochs}; seeds: {report['seeds']}")
    print(f"{'':<20} {_HEADS}")
    exact, eager = report["rows"][0], report["eager"]
    for row in report["rows"]:
        told = _told(row, exact) if row["accuracies"] else "   no value of this step has such a code"
        print(f"{row['name']:<20} {told}")
    told = f"exact: {exact['kept_bytes']:,} bytes kept, peak {exact['peak_bytes']:,}"
    print(f"{told}; eager: peak {eager['peak_ratio']:.1%}, time {eager['time_ratio']:.2f}")
    print(f"times: medians over {report['rounds']} rounds; torch {report['torch']}, threads: {report['threads']}")


def _told(row: Mapping[str, Any], exact: Mapping[str, Any]) -> str:
    accuracies = spread_text([100 * one for one in row["accuracies"]], 1)
    beside = "" if row is exact else spread_text(points_against_exact(row, exact), 1)
    ratios = f"{row['kept_ratio']:>6.1%} {row['peak_ratio']:>6.1%} {row['time_ratio']:>5.2f}"
    losses = spread_text(row["losses"], 3)
    return f"{accuracies:>12} {beside:>12} {losses:>15} {ratios} {row['added']:>8.2g} {row['encoded']:>6}"


def points_against_exact(row: Mapping[str, Any], exact: Mapping[str, Any]) -> list[float]:
    """By seed, how many points of per cent the accuracy is above that with exact gradients from the same start."""
    return [100 * (own - other) for own, other in zip(row["accuracies"], exact["accuracies"], strict=True)]


def spread_text(numbers: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation of a sample; the number alone if there is one."""
    mean = f"{statistics.fmean(numbers):.{digits}f}"
    return f"{mean} ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else mean
