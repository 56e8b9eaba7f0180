"""Tables for a terminal.

Belongs here: how numbers, intervals and tables are written. Does not belong here: what is in them (`terminal.py`,
`terminal_lesions.py`).
"""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["interval", "number", "table"]


def number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        small = value != 0 and abs(value) < 1e-3
        return f"{value:.1e}" if small else f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def interval(row: dict[str, Any]) -> str:
    if row["ci_low"] is None:
        return "–"
    digits = 2 if max(abs(row["ci_low"]), abs(row["ci_high"])) >= 0.1 else 4
    return f"{row['ci_low']:.{digits}f} … {row['ci_high']:.{digits}f}"


def table(title: str, columns: list[str], rows: list[list[Any]], right_from: int = 1) -> RenderableType:
    # The title is a line of its own: rich would fold it to the width of the columns.
    found = Table(header_style="dim", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        found.add_column(
            column,
            justify="right" if index >= right_from else "left",
            no_wrap=index < min(right_from, len(columns) - 1),
            overflow="fold",
        )
    for row in rows:
        found.add_row(*(Text(number(value)) for value in row))
    return Group(Text(title, style="bold"), found) if title else found
