"""What `check-model` prints: the operations of a network, the rule of each, and whether one has none.

Belongs here: layout. Does not belong here: the check itself (`relevance.check_model`), which needs torch.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import polars as pl
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

__all__ = ["operations_report", "without_rule"]

UNREACHED = "no relevance comes here"
WIDE = 130  # columns from which on the aten operation has one of its own


def without_rule(frame: pl.DataFrame) -> pl.DataFrame:
    """The operations that relevance would have to pass and cannot."""
    return frame.filter(pl.col("rule").is_null() & (pl.col("note") != UNREACHED))


def operations_report(frame: pl.DataFrame, *, unknown_only: bool = False) -> RenderableType:
    """All operations, how many there are of each sort, and the verdict; or the verdict and what it is about.

    Parameters
    ----------
    frame
        As `check_model` returns it.
    unknown_only
        Leave out the operations that have a rule.
    """
    missing = without_rule(frame)
    parts: list[RenderableType] = []
    if not unknown_only:
        parts += [_Operations(frame), Text(), _counts(frame), Text()]
    elif missing.height:
        parts += [_Operations(missing), Text()]
    return Group(*parts, _verdict(frame, missing))


class _Operations:
    """One line per operation; what stands there follows the width."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= WIDE
        table = Table(header_style="dim", box=None, pad_edge=False)
        table.add_column("", justify="right", style="dim", no_wrap=True)
        table.add_column("layer", overflow="fold")
        if wide:
            table.add_column("operation", overflow="fold", style="dim")
        table.add_column("kind", no_wrap=True)
        table.add_column("rule", overflow="fold")
        above = ""
        for moves, rows in groupby(self.frame.iter_rows(named=True), _moves):
            run = list(rows)
            if moves and len(run) > 1:
                table.add_row(*_run_of_moves(run, wide=wide))
                continue
            for row in run:
                cells = [Text(str(row["place"])), _layer(row["layer"], above)]
                cells += [Text(_operation(row))] if wide else []
                table.add_row(*cells, _kind(row, named=not wide), _rule(row))
                above = row["layer"]
        yield table


def _moves(row: dict[str, Any]) -> bool:
    return row["kind"] in ("move", "select") and row["rule"] is not None


def _run_of_moves(rows: list[dict[str, Any]], *, wide: bool) -> list[Text]:
    """One line for moves that follow one another: attention rearranges its tensors ten times in a row."""
    names = ", ".join(dict.fromkeys(_operation(row).strip("_") for row in rows))
    shared = len(rows[0]["layer"])
    while shared and not all(row["layer"].startswith(rows[0]["layer"][:shared]) for row in rows):
        shared -= 1
    where = rows[0]["layer"][:shared].rpartition(":" if ":" in rows[0]["layer"][:shared] else ".")[0]
    places = f"{rows[0]['place']}–{rows[-1]['place']}"
    layer = f"{where}: {len(rows)} moves" if where else f"{len(rows)} moves"
    cells = [places, layer, *([names] if wide else []), "move", rows[0]["rule"]]
    return [Text(cell, style="dim") for cell in cells]


def _operation(row: dict[str, Any]) -> str:
    return str(row["operation"]).removeprefix("aten.").removesuffix("_with_indices")


def _layer(name: str, above: str) -> Text:
    """A layer's name; the blocks that the line above names too are dim."""
    shared = _shared(name, above)
    return Text.assemble((name[:shared], "dim"), name[shared:])


def _shared(name: str, other: str) -> int:
    """Length of the blocks that two names begin with: `a.b.` of `a.b.conv` and `a.b.norm`."""
    length = 0
    for end, letter in enumerate(name, start=1):
        if not other.startswith(name[:end]):
            break
        if letter == ".":
            length = end
    return length


def _kind(row: dict[str, Any], *, named: bool) -> Text:
    if not _missing(row):
        return Text(row["kind"], style="dim" if row["kind"] in ("move", "select") else "")
    return Text(f"{row['kind']}: {_operation(row)}" if named else row["kind"], style="bold red")


def _missing(row: dict[str, Any]) -> bool:
    return row["rule"] is None and row["note"] != UNREACHED


def _rule(row: dict[str, Any]) -> Text:
    if _missing(row):
        return Text("none", style="bold red")
    if row["rule"] is None:
        return Text(row["note"], style="dim")
    note = row["note"]
    if row["rule"] == "folded":  # a neighbour is named without the blocks that both are in
        target = note.removeprefix("into ")
        note = f"into {target[_shared(target, row['layer']) :]}" if "," not in target else note
    text = f"{row['rule']} {note}".strip()
    return Text(text, style="dim" if row["rule"] == "folded" or row["kind"] in ("move", "select") else "")


def _counts(frame: pl.DataFrame) -> RenderableType:
    """How many operations of each kind have which rule."""
    table = Table(header_style="dim", box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("kind")
    table.add_column("rule")
    ruled = frame.with_columns(
        shown=pl.when(pl.col("rule").is_null())
        .then(pl.when(pl.col("note") == UNREACHED).then(pl.col("note")).otherwise(pl.lit("none")))
        .otherwise(pl.col("rule"))
    )
    counted = ruled.group_by("kind", "shown", maintain_order=True).len()
    for kind, shown, count in counted.sort("len", descending=True, maintain_order=True).iter_rows():
        table.add_row(str(count), kind, Text(shown, style="bold red" if shown == "none" else ""))
    return table


def _verdict(frame: pl.DataFrame, missing: pl.DataFrame) -> RenderableType:
    if missing.is_empty():
        operations = f"{frame.height} operations, all with a rule" if frame.height != 1 else "1 operation, with a rule"
        unreached = frame.filter(pl.col("rule").is_null()).height
        rest = f", but for {unreached} that no relevance comes to" if unreached else ""
        return Text.assemble(("✓", "green"), f" {operations}{rest}")
    count = missing.height
    title = "1 operation has no rule" if count == 1 else f"{count} operations have no rule"
    parts: list[RenderableType] = [Text(title, style="bold red")]
    notes = [row["note"].partition("; ") for row in missing.iter_rows(named=True)]
    ways = list(dict.fromkeys(rest for *_, rest in notes))
    seen: dict[str, Text] = {}
    for row, (what, _, rest) in zip(missing.iter_rows(named=True), notes, strict=True):
        if row["operation"] in seen:  # one line for all of a kind
            seen[row["operation"]].append(f", also {row['layer']}")
            continue
        seen[row["operation"]] = Text(what if len(ways) == 1 else f"{what}; {rest}")
        parts.append(Padding(seen[row["operation"]], (0, 0, 0, 2)))
    if len(ways) == 1 and ways[0]:
        parts.append(Padding(Text(f"Ways out: {ways[0]}"), (0, 0, 0, 2)))
    return Group(*parts)
