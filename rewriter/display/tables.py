"""Prints plans, frontiers and profiles as tables that fit a hundred columns."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from ...solvers.problem.module_names import grouped
from ...solvers.problem.plain_text import printable, printable_lines
from ...solvers.problem.plan import Plan
from ..text.byte_sizes import format_bytes
from ..verify.report import Report
from .audit_table import audit_text
from .memory_timeline import Peak, peak_of
from .module_summary import ModuleSummary, module_summaries
from .profile import ModuleProfile, Profile

# The width of output without a terminal: pipes, files.
_COLUMNS = 100
_SOLVER_WIDTH = 24


def show(*parts: RenderableType) -> None:
    """Print to standard output."""
    wide = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", _COLUMNS))
    console = Console(width=wide, highlight=False, markup=False, emoji=False)
    with console.capture() as captured:
        console.print(_Printable(Group(*parts)))
    # rich pads lines with spaces, which would end up in copied text
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().rstrip("\n").split("\n")))


@dataclass(frozen=True)
class _Printable:
    """Wraps a renderable and escapes the control characters in it, except those with which rich changes style."""

    shown: RenderableType

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.shown, options):
            if not segment.control:
                yield Segment(printable_lines(segment.text), segment.style)


def line_of(text: str, style: str = "") -> Text:
    """Return a text, which may hold names from outside, as one line of a table or page."""
    return Text(printable(text), style=style)


def plan_text(title: str, plan: Plan) -> RenderableType:
    """Return the numbers of a plan, its fullest moment, and its effect on each module."""
    peak = peak_of(plan)
    kept = f"{plan.peak_bytes / plan.baseline_peak_bytes:.1%} of {format_bytes(plan.baseline_peak_bytes)}"
    rows = [
        ("budget", format_bytes(plan.budget_bytes) if plan.budget_bytes is not None else "none"),
        ("peak", f"{format_bytes(plan.peak_bytes)}, {kept} with everything kept"),
        ("  at", peak.description),
        ("  of which", _parts(peak)),
        ("extra time", f"{_extra(plan)} of {format_seconds(plan.baseline_seconds)} ({plan.costs}); {_bound(plan)}"),
        ("found by", f"{plan.solver} in {plan.solve_seconds:.2f} s"),
    ]
    rows[5:5] = _codes(plan)
    rows += [("", note) for note in plan.notes[1:]]
    rows += [("note", note) for note in plan.problem.notes]
    return Group(facts(title, rows), "", _summaries(plan))


def _codes(plan: Plan) -> list[tuple[str, str]]:
    """Return rows about the encoded values, by codec, and about the variance that they add to the gradient."""
    encodings = [(plan.problem.values[v], plan.problem.values[v].encodings[number]) for v, number in plan.encoded]
    rows = []
    for name in dict.fromkeys(encoding.name for _, encoding in encodings):
        same_codec = [(value.size_bytes, encoding) for value, encoding in encodings if encoding.name == name]
        original_bytes, packed_bytes = sum(s for s, _ in same_codec), sum(e.size_bytes for _, e in same_codec)
        sizes = f"{format_bytes(original_bytes)} in {format_bytes(packed_bytes)}"
        error = sum(encoding.error for _, encoding in same_codec)
        adds = f", adds {error:.3%} to the gradient's variance" if error else ""
        rows.append(("encoded", f"{len(same_codec)} × {name}: {sizes}{adds}"))
    if plan.encoding_error:
        rows.append(
            (
                "variance added",
                f"at most {plan.encoding_error:.3%} of the gradient's own, limit {plan.problem.error_budget:.2%}",
            )
        )
    return rows


def sweep_table(title: str, plans: Sequence[Plan]) -> RenderableType:
    """Return a table with one row per plan, from the highest peak to the lowest."""
    table = new_table(None)
    for name in ("peak", "of all kept", "extra time", "proven at least", "keeps for backward"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("solver", no_wrap=True)
    for plan in plans:
        # the notes of greedy are numbers of layers and bytes; the recipes have names
        recipe = f": {plan.notes[0]}" if plan.solver == "recipes" and plan.notes else ""
        table.add_row(
            _fine_bytes(plan.peak_bytes),
            f"{plan.peak_bytes / plan.baseline_peak_bytes:.1%}",
            _extra(plan),
            _share(plan.lower_bound_seconds, plan),
            _fine_bytes(plan.kept_bytes),
            line_of(shorten(plan.solver + recipe, _SOLVER_WIDTH, placeholder=" …")),
        )
    notes = [line_of(f"  note: {note}") for note in dict.fromkeys(note for plan in plans for note in plan.notes[1:])]
    return Group(line_of(f"{title}, {plans[0].costs} costs", "bold"), table, *notes)


def verify_text(title: str, report: Report) -> RenderableType:
    """Return the outcome of verification."""
    shown = [audit_text(report.audit, new_table(None))] if report.audit.values else []
    return Group(line_of(title, "bold"), Text(str(report)), *shown)


def profile_text(title: str, profile: Profile) -> RenderableType:
    """Return the totals of a step, the share of each module, and the values that take most of the kept bytes."""
    plan = profile.plan
    rows = [
        ("resident", f"{format_bytes(plan.problem.resident_bytes)}: {_resident(profile)}"),
        (
            "kept for backward",
            f"{format_bytes(profile.kept_bytes)}, of which {format_bytes(profile.returned_bytes)} returned",
        ),
        ("peak", f"{format_bytes(plan.peak_bytes)} ({plan.peak_bytes:,} bytes)"),
        ("  at", profile.peak.description),
        ("  of which", _parts(profile.peak)),
        ("time", f"{_times(plan)} ({profile.costs})"),
    ]
    rows += [("note", note) for note in profile.notes]
    parts: list[RenderableType] = [facts(title, rows), "", _modules(profile), "", _largest(profile)]
    return Group(*parts, *(("", _savings(profile)) if profile.savings else ()))


def _fine_bytes(count: int) -> str:
    """Format bytes with three decimals, which distinguish neighbours on a frontier."""
    for power, unit in ((3, "GiB"), (2, "MiB")):
        if count >= 1024**power:
            return f"{count / 1024**power:.3f} {unit}"
    return format_bytes(count)


def format_seconds(seconds: float) -> str:
    """Format seconds in a readable unit: `3.1 ms`."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs" if seconds else "0"


def _modules(profile: Profile) -> Table:
    table = new_table("modules")
    table.add_column("module", overflow="fold")
    for name in ("kept", "share", "forward", "backward", "GFLOP", "kernels"):
        table.add_column(name, justify="right", no_wrap=True)

    def row_key(row: ModuleProfile) -> tuple[int, int, int]:
        return row.kept_bytes, row.flops, row.kernels

    for name, rows in grouped(profile.rows, lambda row: row.module, row_key):
        kept = sum(row.kept_bytes for row in rows)
        table.add_row(
            line_of(_counted(name, rows)),
            format_bytes(kept),
            f"{kept / max(profile.kept_bytes, 1):.1%}",
            format_seconds(sum(row.forward_seconds for row in rows)),
            format_seconds(sum(row.backward_seconds for row in rows)),
            f"{sum(row.flops for row in rows) / 1e9:.3g}",
            str(sum(row.kernels for row in rows)),
        )
    return table


def _largest(profile: Profile) -> Table:
    table = new_table("what takes most of the kept bytes")
    table.add_column("made by", no_wrap=True)
    table.add_column("in", overflow="fold")
    for name in ("values", "bytes", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for kind in profile.largest:
        share = kind.total_bytes / max(profile.kept_bytes, 1)
        module = line_of(kind.module or "(root)")
        table.add_row(line_of(kind.operation), module, str(kind.values), format_bytes(kind.total_bytes), f"{share:.1%}")
    return table


def _savings(profile: Profile) -> Table:
    table = new_table("what passes take back: bytes of forward that backward need not read")
    table.add_column("pass", no_wrap=True)
    table.add_column("fidelity", no_wrap=True)
    table.add_column("in", overflow="fold")
    table.add_column("bytes", justify="right", no_wrap=True)
    for saving in sorted(profile.savings, key=lambda saving: (not saving.taken, -saving.saved_bytes)):
        fidelity = saving.fidelity + ("" if saving.taken else ", not taken")
        table.add_row(saving.name, fidelity, line_of(saving.module or "(root)"), format_bytes(saving.saved_bytes))
    return table


def _summaries(plan: Plan) -> Table:
    table = new_table("what the plan does with each module")
    table.add_column("module", overflow="fold")
    for name in ("keeps", "with everything kept", "recomputed", "extra time"):
        table.add_column(name, justify="right", no_wrap=True)

    def row_key(row: ModuleSummary) -> tuple[int, int, int]:
        return row.kept_bytes, row.all_bytes, row.kernels_again

    # modules that keep nothing and repeat nothing in any plan are left out
    shown = [row for row in module_summaries(plan) if row.kept_bytes or row.all_bytes or row.kernels_again]
    for name, rows in grouped(shown, lambda row: row.module, row_key):
        recomputed, kernels = sum(row.kernels_again for row in rows), sum(row.kernels for row in rows)
        table.add_row(
            line_of(_counted(name, rows)),
            format_bytes(sum(row.kept_bytes for row in rows)),
            format_bytes(sum(row.all_bytes for row in rows)),
            f"{recomputed} of {kernels} kernels" if recomputed else "nothing",
            f"{sum(row.extra_seconds for row in rows) / plan.baseline_seconds:.1%}" if plan.baseline_seconds else "",
        )
    return table


def _counted(name: str, rows: Sequence[object]) -> str:
    return f"{name} (×{len(rows)})" if len(rows) > 1 else name


def facts(title: str, rows: Iterable[tuple[str, str]]) -> RenderableType:
    """Return a title and below it names with values, which are wrapped next to their names."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(f"  {name}", line_of(value))
    return Group(line_of(title, "bold"), grid)


def new_table(title: str | None) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False)


def _parts(peak: Peak) -> str:
    """List the bytes at a peak, largest first, except those below a thousandth."""
    parts = {
        "resident": peak.resident_bytes,
        "gradients": peak.gradients_bytes,
        "outputs": peak.returned_bytes,
        "activations": peak.activation_bytes,
        "running kernel": peak.running_bytes,
    }
    large = sum(parts.values()) / 1000
    sizes = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes if size > large)


def _resident(profile: Profile) -> str:
    parts = (
        ("parameters", profile.parameter_bytes),
        ("buffers", profile.buffer_bytes),
        ("inputs", profile.input_bytes),
    )
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)


def _times(plan: Plan) -> str:
    backward = plan.seconds - plan.forward_seconds
    return f"forward {format_seconds(plan.forward_seconds)}, backward {format_seconds(backward)}"


def _extra(plan: Plan) -> str:
    return f"{plan.extra_share:.1%}"


def _bound(plan: Plan) -> str:
    if plan.lower_bound_seconds is None:
        return "nothing is proven"
    return f"no schedule takes less than {_share(plan.lower_bound_seconds, plan)} at this budget"


def _share(seconds: float | None, plan: Plan) -> str:
    return f"{seconds / plan.baseline_seconds:.1%}" if seconds is not None and plan.baseline_seconds else "–"
