"""Draws accuracy with approximate gradients, beside exact ones, against the peak of a step: one panel for each task."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fine_tuning_settings import ALL, DERIVATIVES, PRODUCTS, ROWS, TOLD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {
    DERIVATIVES: ("o", "#1d3557"),
    ROWS: ("s", "#c1272d"),
    PRODUCTS: ("D", "#3f8f6b"),
    ALL: ("^", "#c77f1e"),
}
_COLUMNS = 2


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Marks are means over seeds of accuracy above exact's, bars standard deviations; numbers are bits, or shares."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(reports))
    lines = -(-len(reports) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * lines + 0.6), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, report in zip(panels, reports, strict=False):
        _panel(axes, report)
    for axes in panels[len(reports) :]:
        axes.set_visible(False)
    handles = {label: one for axes in panels for one, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), frameon=False, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)


def points_beside_exact(row: Mapping[str, Any], exact: Mapping[str, Any]) -> list[float]:
    """By seed, how many points of per cent the accuracy is above that with exact gradients from the same start."""
    return [100 * (own - other) for own, other in zip(row["accuracies"], exact["accuracies"], strict=True)]


def _panel(axes: Axes, report: Mapping[str, Any]) -> None:
    exact = report["rows"][0]
    axes.axhline(0, color="#9a9a9a", linewidth=1, zorder=1)
    axes.plot([100], [0], "*", color="black", markersize=11, zorder=6, label="exact, all kept")
    for family, (marker, colour) in _STYLES.items():
        found = [row for row in report["rows"] if row["family"] == family and row["accuracies"]]
        if not found:
            continue
        peaks = [100 * row["peak_ratio"] for row in found]
        points = [points_beside_exact(row, exact) for row in found]
        means = list(map(statistics.fmean, points))
        spreads = [statistics.stdev(one) if len(one) > 1 else 0.0 for one in points]
        style: dict[str, Any] = {"color": colour, "markersize": 5, "linewidth": 1.3, "elinewidth": 0.9, "capsize": 2}
        axes.errorbar(peaks, means, yerr=spreads, fmt=f"{marker}-", zorder=4, label=TOLD[family], **style)
        _name(axes, [row["amount"] for row in found], list(zip(peaks, means, strict=True)), colour)
    accuracy = 100 * statistics.fmean(exact["accuracies"])
    axes.set_title(f"{report['task']} (exact: {accuracy:.1f} %)", loc="left", fontsize=11)
    axes.set_xlabel("peak of a step, % of exact's")
    axes.set_ylabel("accuracy above exact's, points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#f0f0f0", zorder=0)


def _name(axes: Axes, names: Sequence[str], places: Sequence[tuple[float, float]], colour: str) -> None:
    """Bits or shares beside the marks."""
    for name, place in zip(names, places, strict=True):
        style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": colour, "zorder": 7}
        axes.annotate(name, place, xytext=(4, 4), **style)
