"""Counts the verdicts of a sweep by family and by kind, and writes them as text and as Markdown."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from .record import EXACT, NOT_BUILT, VERDICTS, Record

_SHOWN_NAMES = 4


def summary(records: Sequence[Record]) -> str:
    """Return verdicts by family, then failures by kind, most frequent first."""
    lines = _by_family(records)
    for verdict in VERDICTS:
        kinds = _kinds(record for record in records if record.verdict == verdict != EXACT)
        if kinds:
            lines += ["", f"{verdict}:"]
        for kind, names in kinds:
            shown = ", ".join(names[:_SHOWN_NAMES]) + (", …" if len(names) > _SHOWN_NAMES else "")
            lines.append(f"  {len(names):>4}  {kind}")
            lines.append(f"        {shown}")
    return "\n".join(lines)


def planned_whole(records: Iterable[Record]) -> tuple[int, int]:
    """Count the models that are exact and within prediction and budget, and all that count."""
    counted = [record for record in records if record.is_counted]
    return sum(record.verdict == EXACT for record in counted), len(counted)


def _by_family(records: Sequence[Record]) -> list[str]:
    verdicts = [verdict for verdict in VERDICTS if any(record.verdict == verdict for record in records)]
    width = max([len("family"), *(len(record.family) for record in records)])
    lines = [f"{'family':<{width}}  {'tried':>6} " + " ".join(f"{verdict:>15}" for verdict in verdicts)]
    for family, members in _families(records):
        counts = Counter(record.verdict for record in members)
        cells = " ".join(f"{counts[verdict]:>15}" for verdict in verdicts)
        lines.append(f"{family:<{width}}  {len(members):>6} {cells}")
    whole, counted = planned_whole(records)
    share = f" ({whole / counted:.1%})" if counted else ""
    return [*lines, "", f"planned whole: {whole} of {counted} that train in eager{share}"]


def _families(records: Sequence[Record]) -> Iterable[tuple[str, Sequence[Record]]]:
    members: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        members[record.family].append(record)
    yield from sorted(members.items())
    if len(members) > 1:
        yield "all", records


def _kinds(records: Iterable[Record]) -> list[tuple[str, list[str]]]:
    names: dict[str, list[str]] = defaultdict(list)
    for record in records:
        names[record.kind].append(record.name)
    return sorted(names.items(), key=lambda item: (-len(item[1]), item[0]))


def markdown(records: Sequence[Record]) -> str:
    """Return the page for the docs: how it was measured, verdicts by family, all failures, all models."""
    whole, counted = planned_whole(records)
    packages = sorted(
        {record.package for record in records} | {f"torch {record.torch}" for record in records if record.torch}
    )
    lines = [
        "# Models that were tried",
        "",
        f"{whole} of {counted} models were planned whole. That is: the bits of eager in every step, and a measured",
        "peak within both the prediction and the budget.",
        "",
        "Made by `python -m benchmarks.models --table docs/measurements/models.md`. Each model has random weights and",
        "a small configuration, and is in training mode with its own dropout. It gets the arguments that its forward",
        "names, with labels where it takes them. Each is trained for two steps in eager, again in eager, and",
        "rewritten; the second step has other data. Outputs, gradients, buffers and the generator's state are compared",
        "bit for bit. The budget is 60 % of the predicted peak with everything kept, or the smallest feasible one",
        'where that is more; planned with `costs="flops"`. Peaks are bytes of torch\'s allocator, with all that is',
        "there at the start.",
        "",
        f"Packages: {', '.join(packages)}.",
        "",
        "| verdict | meaning |",
        "|---|---|",
        *(f"| {verdict} | {meaning} |" for verdict, meaning in VERDICTS.items()),
        "",
        *_family_table(records),
    ]
    failed = [record for record in records if record.is_counted and record.verdict != EXACT]
    if failed:
        lines += ["", "## What was not planned whole", "", "| model | verdict | what was said |", "|---|---|---|"]
        lines += [f"| {r.name} | {r.verdict} | {_cell(r.text)} |" for r in sorted(failed, key=lambda r: r.name)]
    lines += ["", "## All models", "", *_model_table(records)]
    return "\n".join(lines) + "\n"


def _family_table(records: Sequence[Record]) -> list[str]:
    lines = [
        f"| family | tried | {' | '.join(VERDICTS)} | planned whole |",
        "|---|---:|" + "---:|" * (len(VERDICTS) + 1),
    ]
    for family, members in _families(records):
        counts = Counter(record.verdict for record in members)
        whole, counted = planned_whole(members)
        cells = " | ".join(str(counts[verdict]) for verdict in VERDICTS)
        lines.append(f"| {family} | {len(members)} | {cells} | {whole / counted if counted else 0:.0%} |")
    return lines


def _model_table(records: Sequence[Record]) -> list[str]:
    lines = [
        "| model | verdict | operations | eager's peak | budget | predicted | measured | extra time |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for record in sorted(records, key=lambda record: record.name):
        if record.verdict == NOT_BUILT:
            continue
        peaks = (record.eager_peak_bytes, record.budget_bytes, record.predicted_peak_bytes, record.measured_peak_bytes)
        cells = " | ".join("–" if peak is None else f"{peak:,}" for peak in peaks)
        extra = "–" if record.extra_share is None else f"{record.extra_share:.1%}"
        lines.append(f"| {record.name} | {record.verdict} | {record.operations or '–'} | {cells} | {extra} |")
    return lines


def _cell(text: str) -> str:
    """Return one line of a message that cannot end its cell, without folders of the machine that ran it."""
    line = re.sub(r"(?<!\w)/\S*/(?=[\w.]+\.py)", "", re.sub(r"/\S*/site-packages/", "", text.split("\n")[0]))
    return line[:160].replace("|", "\\|")
