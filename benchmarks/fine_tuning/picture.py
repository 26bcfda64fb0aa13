"""Draws accuracy with approximate gradients, relative to exact ones, against the bytes kept: a panel for each task."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fine_tuning.settings import ALL, DERIVATIVES, FAMILY_LABELS, PRODUCTS, ROWS
from benchmarks.fine_tuning.table import points_against_exact

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {
    DERIVATIVES: ("o", "#1d3557"),
    ROWS: ("s", "#c1272d"),
    PRODUCTS: ("D", "#3f8f6b"),
    ALL: ("^", "#c77f1e"),
}
_COLUMNS = 2
_CLOSE = 3  # marks that lie closer, in points, share a name


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw means over seeds of accuracy above exact's, with standard deviations; numbers are bits, or shares."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(reports))
    lines = -(-len(reports) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * lines + 0.6), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, report in zip(panels, reports, strict=False):
        _panel(axes, report)
    for axes in panels[len(reports) :]:
        axes.set_visible(False)
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), frameon=False, loc="outside lower center", ncols=3 if columns > 1 else 1
    )
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, report: Mapping[str, Any]) -> None:
    exact = report["rows"][0]
    axes.axhline(0, color="#9a9a9a", linewidth=1, zorder=1)
    axes.plot([100], [0], "*", color="black", markersize=11, zorder=6, label="exact, all kept")
    for family, (marker, colour) in _STYLES.items():
        rows = [row for row in report["rows"] if row["family"] == family and row["accuracies"]]
        if not rows:
            continue
        kept = [100 * row["kept_ratio"] for row in rows]
        points = [points_against_exact(row, exact) for row in rows]
        means = list(map(statistics.fmean, points))
        spreads = [statistics.stdev(spread_points) if len(spread_points) > 1 else 0.0 for spread_points in points]
        style: dict[str, Any] = {"color": colour, "markersize": 5, "linewidth": 1.3, "elinewidth": 0.9, "capsize": 2}
        axes.errorbar(kept, means, yerr=spreads, fmt=f"{marker}-", zorder=4, label=FAMILY_LABELS[family], **style)
        _name(axes, sorted(zip(kept, means, spreads, [row["amount"] for row in rows], strict=True)), colour)
    accuracy = 100 * statistics.fmean(exact["accuracies"])
    axes.set_title(f"{report['task']} (exact: {accuracy:.1f} %)", loc="left", fontsize=11)
    axes.set_xlim(0, 105)
    axes.margins(y=0.14)
    axes.set_xlabel("bytes kept for backward, % of exact's")
    axes.set_ylabel("accuracy above exact's, points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#f0f0f0", zorder=0)


def _name(axes: Axes, marks: Sequence[tuple[float, float, float, str]], colour: str) -> None:
    """Write bits or shares next to the marks (kept, mean, spread, amount); one text above marks that lie too close."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.4}
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8, "color": colour, "zorder": 3, "bbox": box}
    if marks[-1][0] - marks[0][0] < _CLOSE:
        place = (statistics.fmean(mark[0] for mark in marks), max(mark[1] + mark[2] for mark in marks))
        axes.annotate(", ".join(mark[3] for mark in marks), place, xytext=(0, 4), ha="center", **style)
        return
    for kept, mean, _, amount in marks:
        axes.annotate(amount, (kept, mean), xytext=(-6, 3), ha="right", **style)
