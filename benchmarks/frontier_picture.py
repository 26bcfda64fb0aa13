"""Draws the frontier: peak against extra operations, and against step time, of lowtide and all peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.frontier_row import LOWTIDE, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 2**20
_LINE = "#1d3557"
_IMPOSSIBLE = "#e4e4e4"
_KINDS = {
    "eager": ("*", "black", 150, "eager"),
    "checkpoint": ("s", "#c1272d", 52, "checkpoint every n blocks"),
    "selective": ("D", "#7b4f9d", 52, "selective checkpointing"),
    "mixture": ("o", "#e0a458", 46, "last k selective, others full"),
    "memory budget": ("^", "#3f8f6b", 50, "torch memory budget"),
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Two panels with one axis of peaks: extra operations above, step time below."""
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row.failure is None and row.peak_bytes is not None]
    figure = Figure(figsize=(10, 9), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    panels = {"flops": above, "measured": below}
    _panel(above, rows, lambda row: _percent(row.extra_flops_share))
    _panel(below, rows, lambda row: row.time_ratio)
    _shade(panels[report["costs"]], report, offset=0 if report["costs"] == "flops" else 1)
    above.set_ylabel("extra FLOPs, % of eager's")
    below.set_ylabel("step time / eager's")
    below.set_xlabel("peak, MiB above the start of the step")
    above.set_title(f"{report['model']}: {report['told']}", loc="left", fontsize=11)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#f0f0f0", zorder=0)
    handles = {
        label: handle
        for axes in (above, below)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    above.legend(list(handles.values()), list(handles), frameon=False, loc="upper right")
    figure.savefig(path, dpi=150)


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _peak(row: Row) -> float:
    """In MiB."""
    return (row.peak_bytes or 0) / MIB


def _panel(axes: Axes, rows: Sequence[Row], height_of: Callable[[Row], float | None]) -> None:
    """The peers as marks with names, lowtide as a line."""
    for kind, (marker, colour, size, label) in _KINDS.items():
        found = [(row, height) for row in rows if row.kind == kind and (height := height_of(row)) is not None]
        if found:
            peaks, heights = [_peak(row) for row, _ in found], [height for _, height in found]
            axes.scatter(peaks, heights, size, color=colour, marker=marker, zorder=4, label=label)
        for row, height in found:
            _name(axes, row, height, colour)
    ours = sorted(
        {(_peak(row), height) for row in rows if row.kind == LOWTIDE and (height := height_of(row)) is not None}
    )
    if ours:
        axes.plot(*zip(*ours, strict=True), "o-", color=_LINE, markersize=4, linewidth=1.8, zorder=5, label="lowtide")


def _name(axes: Axes, row: Row, height: float, colour: str) -> None:
    """A short name beside a mark: the n, k or share."""
    number = next((word for word in row.name.split() if word.replace(".", "").isdigit()), "")
    told = {"checkpoint": f"n={number or 1}", "mixture": f"k={number}", "memory budget": number}.get(row.kind, "")
    axes.annotate(
        told, (_peak(row), height), xytext=(5, 4), textcoords="offset points", fontsize=8, color=colour, zorder=6
    )


def _shade(axes: Axes, report: dict[str, Any], offset: float) -> None:
    """What no schedule reaches, in the unit that was planned with."""
    scale = 100 if offset == 0 else 1
    peaks = [budget / MIB for budget, _ in report["bound"]]
    bound = [offset + scale * share for _, share in report["bound"]]
    left, right, low, high = *axes.get_xlim(), *axes.get_ylim()
    axes.fill_between(peaks, low, bound, color=_IMPOSSIBLE, linewidth=0, zorder=1)
    axes.plot(peaks, bound, "--", color="#8a8a8a", linewidth=1.2, zorder=2, label="bound: no schedule is below")
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
