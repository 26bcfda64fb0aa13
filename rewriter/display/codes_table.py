"""Shows few-bit codes as a table, and draws them next to the derivative that they stand for."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Group, RenderableType

from ...kernels.few_bit.activations import Activation
from ...kernels.few_bit.input_weights import InputWeight, Uniform
from ..codes import Codes
from .pictures import COLOURS, new_figure, save_figure, set_title
from .tables import facts, new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The middle of longer tables is left out.
_MOST_ROWS = 32
_SAMPLES = 4001


def codes_text(codes: Codes) -> RenderableType:
    """Return the errors, and borders and levels side by side."""
    rows = [
        ("by intervals", f"error {codes.error:.6g}, {len(codes.levels)} levels"),
        ("by value", f"error {codes.value_error:.6g}{_less(codes)}, {len(codes.value_levels)} levels"),
        ("without bias", f"variance {codes.unbiased_variance:.6g}, {len(codes.unbiased_levels)} levels"),
    ]
    table = new_table(None)
    for name in ("", "inputs up to", "level", "value level", "at input", "unbiased level"):
        table.add_column(name, justify="right", no_wrap=True)
    columns = (
        [*codes.borders, np.inf][: len(codes.levels)],
        codes.levels,
        codes.value_levels,
        codes.value_representatives,
        codes.unbiased_levels,
    )
    lines = [(str(row), *map(_number, cells)) for row, cells in enumerate(zip_longest(*columns))]
    if len(lines) > _MOST_ROWS:
        half = _MOST_ROWS // 2
        rows.append(("note", f"rows {half} to {len(lines) - half - 1} are left out: --json has all"))
        lines = [*lines[:half], ("…", *[""] * len(columns)), *lines[-half:]]
    for line in lines:
        table.add_row(*line)
    return Group(facts(f"{codes.activation}' in {_bits(codes)}, {codes.weight}", rows), "", table)


def draw_codes(codes: Codes, activation: Activation, weight: InputWeight, path: Path) -> None:
    """Save a picture of the derivative with both step functions, over the inputs where they change."""
    figure = new_figure(10, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    low, high = _shown(codes, activation, weight)
    x = np.linspace(low, high, _SAMPLES)
    slopes = activation.slopes(x)
    by_interval = np.asarray(codes.levels)[np.searchsorted(codes.borders, x, "left")]
    index = np.asarray(codes.value_level_of_interval)[np.searchsorted(codes.value_borders, x, "left")]
    by_value = np.asarray(codes.value_levels)[index]
    _draw_steps(left, x, slopes, by_interval, f"{len(codes.levels)} intervals", COLOURS["alarm"])
    _draw_steps(right, x, slopes, by_value, f"{len(codes.value_levels)} values", COLOURS["activations"])
    set_title(left, f"{codes.activation}, {_bits(codes)}, {codes.weight}\nby intervals: error {codes.error:.4g}")
    set_title(right, f"\nby value: error {codes.value_error:.4g}{_less(codes)}")
    for axes in (left, right):
        _shade_weight(axes, x, weight)
        axes.set_xlim(low, high)
        axes.set_xlabel("input")
        axes.legend(frameon=False, loc="best")
    left.set_ylabel("derivative")
    save_figure(figure, path)


def _draw_steps(axes: Axes, x: np.ndarray, slopes: np.ndarray, steps: np.ndarray, label: str, colour: str) -> None:
    axes.plot(x, slopes, color=COLOURS["line"], linewidth=1.2, label="derivative", zorder=3)
    axes.plot(x, steps, color=colour, linewidth=1.6, label=label, zorder=4)


def _shade_weight(axes: Axes, x: np.ndarray, weight: InputWeight) -> None:
    """Shade the weight of inputs as a low hill; a uniform weight has none."""
    if isinstance(weight, Uniform):
        return
    bottom, top = axes.get_ylim()
    low, high = weight.support
    density = np.where((x >= low) & (x <= high), weight.density(np.clip(x, low, high)), 0.0)
    hill = bottom + 0.3 * (top - bottom) * density / max(float(density.max()), 1e-300)
    axes.fill_between(x, bottom, hill, color=COLOURS["impossible"], linewidth=0, label="weight", zorder=1)
    axes.set_ylim(bottom, top)


def _shown(codes: Codes, activation: Activation, weight: InputWeight) -> tuple[float, float]:
    """Return the range of inputs in which the derivative or its codes change, with a margin, within the weight's
    support.
    """
    low, high = weight.support
    x = np.linspace(low, high, _SAMPLES)
    slopes = activation.slopes(x)
    threshold = 0.01 * float(np.ptp(slopes))
    moving = x[(np.abs(slopes - slopes[0]) > threshold) & (np.abs(slopes - slopes[-1]) > threshold)]
    busy = np.concatenate([moving, codes.borders, codes.value_borders])
    if not len(busy):
        return low, high
    margin = 0.15 * float(np.ptp(busy)) or 0.25 * (high - low)
    return max(low, float(busy.min()) - margin), min(high, float(busy.max()) + margin)


def _bits(codes: Codes) -> str:
    return f"{codes.bits} bit{'s' if codes.bits > 1 else ''}"


def _less(codes: Codes) -> str:
    """Return how much smaller the error by value is, as a text."""
    if not codes.error > 1e-20:
        return ""
    share = 1 - codes.value_error / codes.error
    return f" ({share:.1%} less)" if share > 5e-4 else ""


def _number(number: float | None) -> str:
    if number is None:
        return ""
    # a number that is zero up to rounding is shown as zero
    return "∞" if number == np.inf else f"{number if abs(number) > 1e-9 else 0.0:.7g}"
