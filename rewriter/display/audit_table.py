"""Shows an audit of approximate codes as a table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...solvers.problem.plain_text import printable
from ..text.byte_sizes import format_bytes
from ..verify.codec_audit import Audit


def audit_text(audit: Audit, table: Table) -> RenderableType:
    """Two lines for each value in an empty table, which is given columns, and under it what they mean."""
    table.title = f"audited alone, with two seeds: {audit.description}"
    for name in ("value", "codec"):
        table.add_column(name, overflow="fold")
    for name in ("bits", "bytes", "error²", "predicted", "measured"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in audit.values:
        shape = "×".join(map(str, one.shape))
        table.add_row(
            Text(f"{printable(one.module) or '(root)'}\n{printable(one.operation)} {shape}"),
            one.codec.replace(", ", ",\n"),
            f"{one.bits:.2g}",
            f"{format_bytes(one.size_bytes)}\nin {format_bytes(one.code_bytes)}",
            f"{one.value_error:.1e}",
            f"{one.predicted:.1e}",
            f"{one.measured:.1e}",
        )
    told = ("error²: of the value, relative; predicted, measured: what that adds to the gradient's variance,",)
    return Group("", table, *(Text(f"  {line}") for line in (*told, "as a share of the gradient's own")))
