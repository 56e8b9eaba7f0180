"""Tables for a terminal.

Belongs here: how numbers, intervals and tables are written. Does not belong here: what is in them (`terminal.py`,
`terminal_lesions.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
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


def table(
    title: str, columns: list[str], rows: list[list[Any]], right_from: int = 1, optional: Sequence[int] = ()
) -> RenderableType:
    """A table whose text folds and whose numbers do not.

    Parameters
    ----------
    title, columns, rows
        Of each row one value per column; floats are rounded, None is a dash.
    right_from
        Place of the first column of numbers.
    optional
        Places of columns that a narrow terminal does without, the least wanted first.
    """
    # The title is a line of its own: rich would fold it to the width of the columns.
    found = _Fitting(columns, rows, right_from, optional)
    return Group(Text(title, style="bold"), found) if title else found


@dataclass(frozen=True)
class _Fitting:
    columns: list[str]
    rows: list[list[Any]]
    right_from: int
    optional: Sequence[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for count in range(len(self.optional) + 1):
            left_out = self.optional[:count]
            shown = self._without(left_out)
            if Measurement.get(console, options.update(width=10_000), shown).maximum <= options.max_width:
                break
        yield shown
        if left_out:
            names = ", ".join(self.columns[place] for place in sorted(left_out))
            yield Text(f"not shown in so narrow a window: {names}", style="dim")

    def _without(self, left_out: Sequence[int]) -> Table:
        shown = Table(header_style="dim", box=None, pad_edge=False)
        places = [place for place in range(len(self.columns)) if place not in left_out]
        for place in places:
            numbers = place >= self.right_from
            shown.add_column(
                self.columns[place], justify="right" if numbers else "left", no_wrap=numbers, overflow="fold"
            )
        for row in self.rows:
            shown.add_row(*(Text(number(row[place])) for place in places))
        return shown
