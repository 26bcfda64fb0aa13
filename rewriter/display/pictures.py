"""Draws the live bytes of a plan over time, and the frontier of peak against extra time next to the recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...solvers.bound import lower_bound_seconds
from ...solvers.candidates.pareto import Rated, rate
from ...solvers.infeasible import largest_operation
from ...solvers.problem.plain_text import printable, printable_lines
from ...solvers.problem.plan import Plan
from ...solvers.problem.problem import Problem
from ...solvers.problem.simulate import baseline_of
from ...solvers.recipes import Recipes
from ..errors import LowtideError
from ..text.byte_sizes import format_bytes
from .memory_timeline import Moment, moments_of, peak_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "resident": "#9aa5b1",
    "gradients": "#e0a458",
    "returned": "#b58bc2",
    "activations": "#4f8fc0",
    "within": "#a9cbe3",
    "line": "#1d3557",
    "alarm": "#c1272d",
    "impossible": "#e6e6e6",
}
_BARS = 500
_KINDS = {"forward": "#1d3557", "backward": "#6ab187", "recomputed": "#e07a3f"}
_RECIPES = (
    ("checkpoint every block", "checkpoint every block", "s", "#c1272d", 60),
    ("selective in every block", "selective in every block", "D", "#7b4f9d", 60),
    ("last ", "mixtures: the last k blocks keep more", "o", "#e0a458", 14),
    ("inputs of every", "inputs of every n blocks", "^", "#6ab187", 22),
)


def check_drawable(path: Path) -> None:
    """Raise LowtideError if a picture could not be saved there, before anything is computed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LowtideError('pictures need matplotlib: pip install "lowtide[plot]"') from error
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in formats:
        raise LowtideError(f"{path} is not a picture's name: it must end in one of .{', .'.join(sorted(formats))}")


def draw_timeline(plan: Plan, title: str, path: Path) -> None:
    """Save a picture of the live bytes during the step, kernel by kernel: by kind, with peak, budget and recomputed
    kernels.
    """
    figure = new_figure(10, 5.4)
    above, strip = figure.subplots(2, 1, sharex=True, height_ratios=(18, 1))
    moments = moments_of(plan)
    divisor, unit = _unit(max(plan.peak_bytes, plan.budget_bytes or 0))
    roof = max(plan.peak_bytes, plan.budget_bytes or 0) / divisor
    _stack(above, plan, moments, divisor)
    if plan.budget_bytes is not None:
        label = f"budget {format_bytes(plan.budget_bytes)}"
        above.axhline(plan.budget_bytes / divisor, color=COLOURS["alarm"], linewidth=1.2, label=label)
    _mark_peak(above, plan, moments, divisor, roof)
    _mark_boundary(above, moments, roof)
    above.set_ylabel(f"alive, {unit}")
    above.set_xlim(0, len(moments))
    above.set_ylim(0, roof * 1.22)
    set_title(above, f"{title}\n{plan.extra_share:.1%} extra time ({plan.solver})")
    _draw_kinds(strip, moments)
    figure.legend(loc="outside lower center", ncol=5, frameon=False)
    save_figure(figure, path)


def draw_frontier(plans: Sequence[Plan], title: str, path: Path) -> list[Rated]:
    """Save a picture of the frontier with the region proven impossible and the recipes; return the recipes' points.

    Between two plans the line is at the one with the lower peak, which is the plan for a budget between them.
    """
    problems = list(dict.fromkeys(plan.problem for plan in plans))
    problem = next((candidate for candidate in problems if candidate.reference is None), problems[0])
    recipes = [rate(problem, "recipes", candidate) for candidate in Recipes().candidates(problem)]
    figure = new_figure(9, 5.6)
    axes = figure.subplots()
    divisor, unit = _unit(plans[0].baseline_peak_bytes)
    low = min(plan.peak_bytes for plan in plans)
    high = plans[0].baseline_peak_bytes
    left, right = low - 0.1 * (high - low), high + 0.04 * (high - low)
    top = _top(plans, recipes)
    _shade_impossible(axes, problems, (left, right), top, divisor)
    _draw_recipes(axes, problem, recipes, divisor)
    ordered = sorted(plans, key=lambda plan: plan.peak_bytes)
    peaks = [plan.peak_bytes / divisor for plan in ordered]
    extra = [100 * plan.extra_share for plan in ordered]
    axes.plot(
        peaks, extra, "o-", drawstyle="steps-post", color=COLOURS["line"], markersize=3.5, zorder=5, label="lowtide"
    )
    axes.plot(high / divisor, 0, "*", color="black", markersize=14, zorder=6, label="everything kept")
    axes.set_xlim(left / divisor, right / divisor)
    axes.set_ylim(-0.03 * top, top)
    axes.set_xlabel(f"peak, {unit}")
    axes.set_ylabel(printable(f"extra time, % ({problem.costs})"), parse_math=False)
    set_title(axes, title)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[-2:] + handles[:-2], labels[-2:] + labels[:-2], frameon=False)
    save_figure(figure, path)
    return recipes


def _stack(axes: Axes, plan: Plan, moments: Sequence[Moment], divisor: float) -> None:
    """Stack areas: resident, gradients, returned, activations, and the bytes of the running kernel."""
    edges = np.arange(len(moments) + 1)
    layers = [
        ("resident", "parameters, buffers, inputs", [plan.problem.resident_bytes for _ in moments]),
        ("gradients", "gradients", [m.gradients_bytes for m in moments]),
        ("returned", "returned outputs", [m.returned_bytes for m in moments]),
        ("activations", "activations", [m.activation_bytes for m in moments]),
    ]
    floor = np.zeros(len(moments) + 1)
    for key, label, sizes in layers:
        if any(sizes):
            roof = floor + np.append(sizes, sizes[-1]) / divisor
            axes.fill_between(edges, floor, roof, step="post", color=COLOURS[key], linewidth=0, label=label)
            floor = roof
    within = np.array([m.within_bytes for m in moments]) / divisor
    within = np.maximum(np.append(within, within[-1]), floor)
    axes.fill_between(
        edges, floor, within, step="post", color=COLOURS["within"], linewidth=0, label="while a kernel runs"
    )


def _mark_peak(axes: Axes, plan: Plan, moments: Sequence[Moment], divisor: float, roof: float) -> None:
    """Draw a dot at the fullest moment with the operation and its module."""
    peak = peak_of(plan)
    at = next((i for i, m in enumerate(moments) if m.within_bytes == plan.peak_bytes), 0)
    peak_height = plan.peak_bytes / divisor
    axes.plot(at + 0.5, peak_height, "o", color=COLOURS["line"], markersize=6, zorder=6)
    thirds = (("left", 0.0), ("center", 0.5), ("right", 1.0))
    side, start = thirds[min(3 * at // max(len(moments), 1), 2)]
    axes.annotate(
        printable(f"peak {format_bytes(plan.peak_bytes)}: {peak.description}"),
        (at + 0.5, peak_height),
        xytext=(at + 0.5, roof * 1.1),
        ha=side,
        va="bottom",
        parse_math=False,
        arrowprops={"arrowstyle": "-", "color": COLOURS["line"], "linewidth": 0.8, "relpos": (start, 0.0)},
    )


def _draw_kinds(axes: Axes, moments: Sequence[Moment]) -> None:
    """Draw a strip under the picture: which kernels are of forward, of backward, and recomputed."""
    # several kernels share a bar, each with its share, where there are more kernels than bars
    starts = np.unique(np.linspace(0, len(moments), min(len(moments), _BARS), endpoint=False).astype(int))
    widths = np.diff(np.append(starts, len(moments)))
    floor = np.zeros(len(starts))
    for kind, colour in _KINDS.items():
        share = np.add.reduceat([float(m.kind == kind) for m in moments], starts) / widths
        axes.bar(starts, share, widths, floor, align="edge", color=colour, linewidth=0)
        axes.scatter([], [], 60, color=colour, marker="s", label=kind)
        floor += share
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_xlabel("kernels run, in order")


def _mark_boundary(axes: Axes, moments: Sequence[Moment], roof: float) -> None:
    """Draw a line at the boundary between forward and backward."""
    boundary = next((i for i, m in enumerate(moments) if m.kind != "forward"), len(moments))
    axes.plot([boundary, boundary], [0, roof * 1.06], color="#555555", linewidth=0.8, linestyle=(0, (4, 3)))


def _top(plans: Sequence[Plan], recipes: Sequence[Rated]) -> float:
    """Return the extra time at the upper edge: above the frontier and the two best-known recipes."""
    baseline = plans[0].baseline_seconds
    recipe_shares = [
        recipe.seconds / baseline - 1 for recipe in recipes if recipe.description in (_RECIPES[0][0], _RECIPES[1][0])
    ]
    return 100 * 1.15 * max([plan.extra_share for plan in plans] + recipe_shares + [0.01])


def _shade_impossible(
    axes: Axes, problems: Sequence[Problem], limits: tuple[float, float], top: float, divisor: float
) -> None:
    """Shade the region that no schedule reaches: below the proven time, or below the largest operation's bytes."""
    peaks = np.linspace(*limits, 200)
    bound = np.full(len(peaks), np.inf)
    for problem in problems:
        proven = [100 * lower_bound_seconds(problem, int(peak)) / baseline_of(problem).seconds for peak in peaks]
        bound = np.minimum(bound, np.where(peaks < largest_operation(problem)[0], top, proven))
    label = "no schedule can be here"
    axes.fill_between(peaks / divisor, -top, bound, color=COLOURS["impossible"], linewidth=0, label=label)


def _draw_recipes(axes: Axes, problem: Problem, recipes: Sequence[Rated], divisor: float) -> None:
    """Draw the points of each family of recipes with its own marker."""
    for start, label, marker, colour, size in _RECIPES:
        family = [recipe for recipe in recipes if recipe.description.startswith(start)]
        peaks = [recipe.peak_bytes / divisor for recipe in family]
        extra = [100 * (recipe.seconds / baseline_of(problem).seconds - 1) for recipe in family]
        axes.scatter(peaks, extra, size, color=colour, marker=marker, zorder=4 if size > 30 else 3, label=label)


def _unit(largest_bytes: int) -> tuple[float, str]:
    """Return the divisor of bytes and the name of that unit."""
    for power, name in ((3, "GiB"), (2, "MiB")):
        if largest_bytes >= 2 * 1024**power:
            return 1024.0**power, name
    return 1024.0, "KiB"


def new_figure(width_inches: float, height_inches: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_inches, height_inches), layout="constrained")


def set_title(axes: Axes, text: str) -> None:
    """Set a title that may hold names from outside: `$` in them does not start mathematics."""
    axes.set_title(printable_lines(text), loc="left", fontsize=11, parse_math=False)


def save_figure(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    options: dict[str, Any] = {"dpi": 150}
    figure.savefig(path, **options)
