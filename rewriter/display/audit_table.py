"""Shows an audit of approximate codes as a table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ...solvers.problem.plain_text import printable
from ..text.byte_sizes import format_bytes
from ..verify.codec_audit import Audit


def audit_text(audit: Audit, table: Table) -> RenderableType:
    """Return an empty table filled with two lines for each value, with the meaning of its columns below."""
    table.title = f"audited alone, with two seeds: {audit.description}"
    for name in ("value", "codec"):
        table.add_column(name, overflow="fold")
    for name in ("bits", "bytes", "error²", "predicted", "measured"):
        table.add_column(name, justify="right", no_wrap=True)
    for value in audit.values:
        shape = "×".join(map(str, value.shape))
        table.add_row(
            Text(f"{printable(value.module) or '(root)'}\n{printable(value.operation)} {shape}"),
            value.codec.replace(", ", ",\n"),
            f"{value.bits:.2g}",
            f"{format_bytes(value.original_bytes)}\nin {format_bytes(value.packed_bytes)}",
            f"{value.value_error:.1e}",
            f"{value.predicted:.1e}",
            f"{value.measured:.1e}",
        )
    legend = ("error²: of the value, relative; predicted, measured: what that adds to the gradient's variance,",)
    return Group("", table, *(Text(f"  {line}") for line in (*legend, "as a share of the gradient's own")))
