"""Prints what the frontier measured: all rows, which method is better, and what failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.frontier.domination import Domination
from benchmarks.frontier.row import LOWTIDE, Row

MIB = 2**20
_WIDTH = 113


def print_table(report: dict[str, Any]) -> None:
    """Print the report section by section."""
    rows: list[Row] = report["rows"]
    print(f"\n{report['model']}: {report['description']}")
    print(
        f"{'MiB above the start of the step':<32} {'peak':>8} {'predicted':>9} {'extra':>7} {'step time / eager':>20}  "
        f"{'gradients':<9} {'planning':>8} {'bound':>6} {'gap':>5}"
    )
    print(f"{'':<32} {'':>8} {'':>9} {'FLOPs':>7} {'median (quartiles)':>20}  {'':<9} {'s':>8} {'%':>6} {'%':>5}")
    kind = None
    for row in rows:
        if kind is not None and row.kind != kind:
            print("─" * _WIDTH)
        kind = row.kind
        print(_line(row).rstrip())
    print("─" * _WIDTH)
    _print_notes(rows)
    _print_domination(report["domination"], report["costs"])
    failures = "; ".join(report["failures"]) or "none"
    print(f"failures of lowtide: {failures}")
    resident = ""
    if report["resident_bytes"] is not None:
        resident = (
            f"; {_mebibytes(report['resident_bytes'])} MiB at the start\nthe first plan took "
            f"{report['first_planning_seconds']:.1f} s ({report['first_solve_seconds']:.1f} s to solve); the others "
            "are planned from its candidates"
        )
    print(
        f"medians over {report['rounds']} rounds, all in turn; lowtide planned with costs={report['costs']!r}, bound "
        f"and gap in the same;\ngradients {report['gradients']} at the start; torch {report['torch']}, "
        f"{report['threads']} threads{resident}"
    )


def _line(row: Row) -> str:
    if row.failure is not None:
        return f"{row.name:<32} {row.failure}"
    time = ""
    if row.same_plan_as is not None:
        time = "same plan as above"
    elif row.time_ratio is not None and row.time_ratio_quartiles is not None:
        time = "{:.3f} ({:.3f}–{:.3f})".format(row.time_ratio, *row.time_ratio_quartiles)
    predicted = "" if row.predicted_peak_bytes is None else _mebibytes(row.predicted_peak_bytes)
    if row.predicted_peak_bytes is not None and row.predicted_peak_bytes == row.peak_bytes:
        predicted = "equal"
    planning = "" if row.planning_seconds is None else f"{row.planning_seconds:.1f}"
    return (
        f"{row.name:<32} {_mebibytes(row.peak_bytes):>8} {predicted:>9} {_percent(row.extra_flops_share):>7} "
        f"{time:>20}  {_bits(row):<9} {planning:>8} {_percent(row.bound_share, ''):>6} {_percent(row.gap_share, ''):>5}"
    )


def _bits(row: Row) -> str:
    if row.gradient_error is None:
        return ""
    return "equal" if row.gradient_error == 0 else f"{row.gradient_error:.1e}"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / MIB:.1f}"


def _percent(share: float | None, unit: str = " %") -> str:
    return "" if share is None else f"{100 * share + 0.0:.1f}{unit}".replace("-0.0", "0.0")


def _print_notes(rows: Sequence[Row]) -> None:
    """Print notes that the columns do not show, each once with its rows; lowtide's plans have none."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        row_notes = list(row.notes) if row.kind != LOWTIDE else []
        if row.buffers_equal is False:
            row_notes.append("running statistics differ from eager's (updated again when forward is recomputed)")
        if row.is_wrong and row.loss_equal:
            row_notes.append(
                "eager's loss bit for bit, but wrong gradients (dropout redrawn when forward is recomputed)"
            )
        elif row.is_wrong:
            row_notes.append("wrong gradients, or other random numbers than eager's")
        for note in row_notes:
            notes.setdefault(note, []).append(row.name)
    for note, names in notes.items():
        print(f"{note}: {', '.join(names) if len(names) < 4 else f'{names[0]} … {names[-1]}, {len(names)} rows'}")


def _print_domination(dominations: Sequence[Domination], costs: str) -> None:
    """Print lowtide's operations and time at each peer's peak, and its lowest peak at the peer's operations or time."""
    at = "FLOPs" if costs == "flops" else "time"
    print(f"\n{'lowtide against each peer':<32} {'peak':>8} {'extra FLOPs':>22} {'time':>20} {'lowest':>10}  verdict")
    heading = f"{'at its':>8} {'lowtide’s':>10} {'the peer’s':>11} {'lowtide’s / peer’s':>20} {'at its ' + at:>12}"
    print(f"{'':<32} {heading}")
    for domination in dominations:
        time = ""
        if domination.time_ratio is not None and domination.time_ratio_quartiles is not None:
            time = "{:.3f} ({:.3f}–{:.3f})".format(domination.time_ratio, *domination.time_ratio_quartiles)
        own_extra = _percent(domination.extra_flops_share) or "none"
        lowest = _mebibytes(domination.lowest_peak_bytes) or "none"
        print(
            f"{domination.peer:<32} {_mebibytes(domination.peer_peak_bytes):>8} {own_extra:>10} "
            f"{_percent(domination.peer_extra_flops_share):>11} {time:>20} {lowest:>12}"
            f"  {domination.verdict}{', its gradients are wrong' if domination.is_peer_wrong else ''}"
        )
