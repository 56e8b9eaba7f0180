"""A study's published numbers beside ours.

Belongs here: reading the lists of published numbers (`published/<study>.yaml`), finding our value of each, the
verdict. Does not belong here: how our values are made; whether a cohort is comparable at all, which the caller says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

__all__ = ["compare", "published_numbers"]

_LISTS = Path(__file__).parent / "published"
_REQUIRED = {"measure", "published", "decimals", "source", "ours"}
_OPTIONAL = {"unit", "n", "note", "contradicts"}
_SCHEMA = {
    "study": pl.String,
    "measure": pl.String,
    "published": pl.Float64,
    "ours": pl.Float64,
    "unit": pl.String,
    "n": pl.Int64,
    "n_published": pl.Int64,
    "verdict": pl.String,
    "comparable": pl.Boolean,
    "note": pl.String,
}


def published_numbers(study: str) -> tuple[dict[str, Any], ...]:
    """The published numbers of a study, from its list in this package; none if there is no such list.

    Each entry has measure (unique), published, decimals (that it was rounded to), source (table or section), ours
    (where our value is: table, where, column), and may have unit, n, note and contradicts (which number of the
    same publication says otherwise).

    Raises
    ------
    ValueError
        An entry that lacks one of these, has another, or the measure of an earlier one.
    """
    path = _LISTS / f"{study}.yaml"
    return _parsed(study, path.name, path.read_text(encoding="utf-8")) if path.exists() else ()


@cache  # a study's stages are listed at every look of its sensor
def _parsed(study: str, file: str, text: str) -> tuple[dict[str, Any], ...]:
    import yaml

    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(yaml.safe_load(text)["numbers"], 1):
        wrong = (_REQUIRED - set(entry)) | (set(entry) - _REQUIRED - _OPTIONAL)
        if wrong or set(entry["ours"]) != {"table", "where", "column"}:
            raise ValueError(f"{file}: number {number} lacks or does not know {sorted(wrong) or 'a part of ours'}")
        if entry["measure"] in found:
            raise ValueError(f"{file}: {entry['measure']!r} is there twice; name each number differently")
        found[entry["measure"]] = {"study": study} | entry
    return tuple(found.values())


def compare(
    published: Sequence[Mapping[str, Any]],
    read: Callable[[str], pl.DataFrame],
    comparable: bool,
    note: str = "",
) -> pl.DataFrame:
    """Every published number with our value.

    Parameters
    ----------
    published : entries as `published_numbers` gives them.
    read : gives a table by its name; an empty one if there is none yet.
    comparable : whether our cohort is of the published kind; synthetic people are not.
    note : what holds for all of them, e.g. of which cohort our values are.

    Returns
    -------
    study, measure, published, ours, unit ('1' where it has none), n (ours, from the table's column `n`),
    n_published, verdict, comparable, note. The verdict is 'contradicts itself' where the publication gives another
    number for the same thing, else 'not measured' where we have no value, 'rounds to' where ours is the published
    one at its decimals, else 'differs'.

    Raises
    ------
    ValueError
        Several rows where one number is asked for, a column that the table has not.
    """
    rows = []
    for entry in published:
        ours, n = _ours(entry, read)
        about = [entry["source"], entry.get("note"), note]
        if entry.get("contradicts"):
            about.insert(1, f"contradicted by {entry['contradicts']}")
        row = {
            "study": entry["study"],
            "measure": entry["measure"],
            "published": float(entry["published"]),
            "ours": ours,
            "unit": entry.get("unit", "1"),
            "n": n,
            "n_published": entry.get("n"),
            "verdict": _verdict(entry, ours),
            "comparable": comparable,
            "note": "; ".join(part for part in about if part),
        }
        rows.append(row)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _ours(entry: Mapping[str, Any], read: Callable[[str], pl.DataFrame]) -> tuple[float | None, int | None]:
    """Our value and its n; None where there is no such row or the value is undefined."""
    table, where, column = (entry["ours"][key] for key in ("table", "where", "column"))
    frame = read(table)
    if frame.is_empty():
        return None, None
    unknown = sorted({column, *where} - set(frame.columns))
    if unknown:
        raise ValueError(f"published: {entry['measure']!r} asks for {table}.{unknown[0]}, which there is not")
    found = frame.filter(*(pl.col(name) == value for name, value in where.items()))
    if found.height > 1:
        raise ValueError(f"published: {found.height} rows of {table} are {entry['measure']!r}; say more in `where`")
    if found.is_empty():
        return None, None
    row = found.row(0, named=True)
    value = row[column]
    return None if value is None or math.isnan(value) else float(value), row.get("n")


def _verdict(entry: Mapping[str, Any], ours: float | None) -> str:
    if entry.get("contradicts"):
        return "contradicts itself"
    if ours is None:
        return "not measured"
    # a hair more than half a unit of the last decimal: 0.8645 is not exactly half-way in binary
    reach = 0.5 * 10.0 ** -entry["decimals"] + 1e-12
    return "rounds to" if abs(ours - entry["published"]) <= reach else "differs"
