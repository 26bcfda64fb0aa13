"""Draws fine-tuning with approximate gradients: accuracy against the peak of a step, one panel for each task."""

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
_BAND = "#e9e9e9"
_COLUMNS = 2


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Marks are means, bars standard deviations over seeds; the band is what exact gradients reach."""
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


def _panel(axes: Axes, report: Mapping[str, Any]) -> None:
    exact = [100 * one for one in report["rows"][0]["accuracies"]]
    mean, spread = statistics.fmean(exact), _spread(exact)
    axes.axhspan(mean - spread, mean + spread, color=_BAND, linewidth=0, zorder=0, label="exact, ± standard deviation")
    axes.axhline(mean, color="#9a9a9a", linewidth=1, zorder=1)
    axes.plot([100], [mean], "*", color="black", markersize=11, zorder=6, label="exact, all kept")
    for family, (marker, colour) in _STYLES.items():
        found = [row for row in report["rows"] if row["family"] == family and row["accuracies"]]
        if not found:
            continue
        peaks = [100 * row["peak_ratio"] for row in found]
        means = [100 * statistics.fmean(row["accuracies"]) for row in found]
        spreads = [100 * _spread(row["accuracies"]) for row in found]
        style: dict[str, Any] = {"color": colour, "markersize": 5, "linewidth": 1.3, "elinewidth": 0.9, "capsize": 2}
        axes.errorbar(peaks, means, yerr=spreads, fmt=f"{marker}-", zorder=4, label=TOLD[family], **style)
        for row, place in zip(found, zip(peaks, means, strict=True), strict=True):
            text: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": colour, "zorder": 7}
            axes.annotate(row["amount"], place, xytext=(4, 4), **text)
    axes.set_title(report["task"], loc="left", fontsize=11)
    axes.set_xlabel("peak of a step, % of exact's")
    axes.set_ylabel("accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#f0f0f0", zorder=0)


def _spread(numbers: Sequence[float]) -> float:
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0
