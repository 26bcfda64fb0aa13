"""Draws the frontier: peak against extra operations, and against step time, of lowtide and all peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.frontier.row import LOWTIDE, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 2**20
_LINE = "#1d3557"
_IMPOSSIBLE = "#e4e4e4"
_KINDS = {
    "eager": ("*", "black", 150, "eager"),
    "checkpoint": ("s", "#c1272d", 52, "checkpoint every n blocks"),
    "selective": ("D", "#7b4f9d", 52, "selective checkpointing"),
    "mixture": ("o", "#c77f1e", 46, "last k selective, others full"),
    "memory budget": ("^", "#3f8f6b", 50, "torch memory budget"),
}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw two panels with one axis of peaks: extra operations above, step time below."""
    from matplotlib.figure import Figure

    rows = [row for row in report["rows"] if row.failure is None and row.peak_bytes is not None]
    figure = Figure(figsize=(10, 9.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _panel(above, rows, lambda row: None if row.extra_flops_share is None else 100 * row.extra_flops_share, "{:.0f} %")
    _panel(below, rows, lambda row: row.time_ratio, "{:.1f}")
    below.axhline(1, color="#b0b0b0", linewidth=0.8, zorder=1)
    if report["costs"] == "flops":
        _shade(above, report, 0, 100)
    else:
        _shade(below, report, 1, 1)
    above.set_ylabel("extra FLOPs, % of eager's")
    below.set_ylabel("step time / eager's")
    below.set_xlabel("peak, MiB above the start of the step")
    above.set_title(f"{report['model']}: {report['description']}", loc="left", fontsize=11)
    handles = {
        label: handle
        for axes in (above, below)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), frameon=False, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, rows: Sequence[Row], height_of: Callable[[Row], float | None], label_format: str) -> None:
    """Draw the peers as marks with names, lowtide as a line; the axis ends a little above the highest peer."""
    places = {row.name: (_peak(row), height) for row in rows if (height := height_of(row)) is not None}
    peers = [height for name, (_, height) in places.items() if not name.startswith(LOWTIDE)]
    low = min(height for _, height in places.values())
    top = low + 1.25 * (max(peers) - low) or low + 1
    for kind, (marker, colour, size, label) in _KINDS.items():
        marks = {row.name: places[row.name] for row in rows if row.kind == kind and row.name in places}
        if marks:
            peaks, heights = zip(*marks.values(), strict=True)
            axes.scatter(peaks, heights, size, color=colour, marker=marker, zorder=4, label=label)
            _name(axes, kind, marks, colour)
    _draw_ours(
        axes,
        sorted({places[row.name] for row in rows if row.kind == LOWTIDE and row.name in places}),
        top,
        label_format,
    )
    axes.set_ylim(low - 0.08 * (top - low), top)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#f0f0f0", zorder=0)


def _draw_ours(axes: Axes, places: Sequence[tuple[float, float]], top: float, label_format: str) -> None:
    """Draw the plans that were measured, joined by a line; those above `top` are listed as text."""
    if not places:
        return
    peaks, heights = zip(*places, strict=True)
    style: dict[str, Any] = {"color": _LINE, "markersize": 4.5, "linewidth": 1.6}
    axes.plot(peaks, heights, "o-", zorder=5, label="lowtide", **style)
    above = [f"{label_format.format(height)} at {peak:.1f}" for peak, height in places if height > top]
    if above:
        text = "↑ " + ", ".join(above)
        place: dict[str, Any] = {"xytext": (2, -2), "textcoords": "offset points", "va": "top", "zorder": 7}
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(text, (peaks[0], top), fontsize=8, color=_LINE, bbox=box, **place)


def _peak(row: Row) -> float:
    """Return a row's peak in MiB."""
    return (row.peak_bytes or 0) / MIB


def _name(axes: Axes, kind: str, marks: dict[str, tuple[float, float]], colour: str) -> None:
    """Write a short name next to each mark, the n, k or share; one for marks in the same place."""
    names: dict[tuple[float, float], list[str]] = {}
    for name, place in marks.items():
        number = next((word for word in name.split() if word.replace(".", "").isdigit()), "1")
        names.setdefault(place, []).append(number)
    start = {"checkpoint": "n = ", "mixture": "k = ", "memory budget": ""}.get(kind)
    for place, numbers in names.items():
        if start is not None:
            text = start + ", ".join(reversed(numbers))
            axes.annotate(text, place, xytext=(6, 4), textcoords="offset points", fontsize=8, color=colour, zorder=6)


def _shade(axes: Axes, report: dict[str, Any], offset: float, scale: float) -> None:
    """Shade the region that no schedule reaches, in the unit that was planned with."""
    if not report["bound"]:
        return
    peaks = [budget / MIB for budget, _ in report["bound"]]
    bound = [offset + scale * share for _, share in report["bound"]]
    left, right, low, high = *axes.get_xlim(), *axes.get_ylim()
    axes.fill_between(peaks, low, bound, color=_IMPOSSIBLE, linewidth=0, zorder=1)
    axes.plot(peaks, bound, "--", color="#7a7a7a", linewidth=1.2, zorder=2, label="no schedule is below (bound)")
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
