"""Who was scanned: participants.tsv and sessions.tsv, joined to the scans of a study.

Belongs here: reading these tables, the study's choice of people, its target. Does not belong here: finding
images (`bids.py`), who is in which set (`splits.py`).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from relevance_assets.cohort.bids import DatasetError, ScanFiles, is_scan
from relevance_assets.cohort.text import one_line, read_text
from relevance_assets.study import Study

__all__ = ["Participants", "cohort_table", "column_values", "participants_table", "read_participants"]

Participants = tuple[pl.DataFrame, dict[str, str]]

TEXT = ("sex", "group", "ms_type")
NUMBERS = ("age", "edss")
NOT_AVAILABLE = ("", "n/a", "N/A")
SCHEMA: dict[str, Any] = {
    "scan": pl.String,
    "participant_id": pl.String,
    "session": pl.String,
    "age": pl.Float64,
    "sex": pl.String,
    "group": pl.String,
    "ms_type": pl.String,
    "edss": pl.Float64,
    "other": pl.String,
    "target": pl.Float64,
    "status": pl.String,
    "reason": pl.String,
}


# ---------------------------------------------------------------------------------------------------- reading
def is_person(name: str) -> bool:
    """`sub-<label>`, safe in a path."""
    return is_scan(name) and "_" not in name


def read_participants(bids: Path) -> Participants:
    """participants.tsv, and one more row for each session that a `sub-*_sessions.tsv` describes.

    Returns
    -------
    frame : DataFrame
        `participant_id`, `session_id` (null in the rows of participants.tsv itself) and the columns of the
        files, all as text. In a session's row the columns of sessions.tsv win, `n/a` included; others are
        the person's.
    problems : dict
        participant_id to one line, for people listed twice, rows that do not fit the header, ids that are no label,
        and sessions.tsv files that cannot be used. A row without an id is named by its line.

    Raises
    ------
    DatasetError
        participants.tsv is missing or empty, its header is malformed, or it is no UTF-8 text.
    """
    path = bids / "participants.tsv"
    if not path.exists():
        raise DatasetError(f"{path}: no such file; list the participants there, first column participant_id")
    rows, faults = _read_tsv(path, "participant_id")
    if not rows:
        raise DatasetError(next(iter(faults.values()), f"{path}: lists no participant"))
    if "session_id" in rows[0]:
        raise DatasetError(
            f"{path}: one row per person, without session_id; values per session belong to "
            "sub-<label>/sub-<label>_sessions.tsv"
        )
    people: dict[str, dict[str, str | None]] = {}
    counts: dict[str, int] = {}
    for row in rows:
        participant = str(row["participant_id"])
        people.setdefault(participant, row)
        counts[participant] = counts.get(participant, 0) + 1
    if not any(participant.startswith("sub-") for participant in people):
        raise DatasetError(f"{path}: participant_id must be sub-<label>, as the folders are named; {rows[0]}")
    problems = faults | {
        participant: f"{participant} is listed {count} times in participants.tsv; keep one row, and values "
        f"per session in {participant}_sessions.tsv"
        for participant, count in counts.items()
        if count > 1
    }
    for participant in people:
        if not is_person(participant):
            problems[participant] = (
                f"participant_id {one_line(participant)!r} in participants.tsv is not sub-<label>, "
                "letters and digits; rename it as the folder is named"
            )
    merged: list[dict[str, str | None]] = []
    for participant, row in people.items():
        merged.append(row | {"session_id": None})
        merged.extend(_sessions(bids, participant, row, problems))
    columns = list(dict.fromkeys(key for row in merged for key in row))
    columns = [
        "participant_id",
        "session_id",
        *(c for c in columns if c not in ("participant_id", "session_id")),
    ]
    schema = dict.fromkeys(columns, pl.String)
    return pl.DataFrame([{c: row.get(c) for c in columns} for row in merged], schema=schema), problems


def _sessions(
    bids: Path, participant: str, person: Mapping[str, str | None], problems: dict[str, str]
) -> list[dict[str, str | None]]:
    """One merged row per session of a person; none where there is no sessions.tsv or it is unusable."""
    if not is_person(participant):  # no path is made of it
        return []
    path = bids / participant / f"{participant}_sessions.tsv"
    try:
        if not path.exists():
            return []
        rows, faults = _read_tsv(path, "session_id")
    except (DatasetError, PermissionError) as error:
        problems.setdefault(participant, str(error))
        return []
    sessions = [row["session_id"] for row in rows]
    doubled = sorted({str(session) for session in sessions if sessions.count(session) > 1})
    if doubled:
        faults[doubled[0]] = f"{path}: {doubled[0]} is listed more than once; keep one row"
    if faults:
        problems.setdefault(participant, next(iter(faults.values())))
        return []
    return [{**person, **row, "participant_id": participant} for row in rows]


def _read_tsv(path: Path, key: str) -> tuple[list[dict[str, str | None]], dict[str, str]]:
    """Rows of a tab-separated file with a header; `n/a` and empty cells are None.

    A row that does not fit the header is not among them, but in the second result: what its key is, or its line where
    it has none, and what is wrong with it.
    """
    try:
        lines = io.StringIO(read_text(path), newline=None).read().split("\n")  # lines end by \n, \r\n or \r, only
    except (FileNotFoundError, PermissionError, ValueError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); save it as UTF-8 text with tabs") from None
    cells = [[_unquoted(cell.strip()) for cell in line.split("\t")] for line in lines]
    header = cells[0]
    while header and not header[-1]:  # a tab too many, as spreadsheets write it
        header.pop()
    if key not in header:
        hint = "; separate columns by tabs" if any(key in cell for cell in header) else ""
        raise DatasetError(f"{path}: no column {key}; columns: {', '.join(header) or 'none'}{hint}")
    if len(set(header)) != len(header):
        raise DatasetError(f"{path}: a column name occurs twice: {', '.join(header)}")
    place, rows, faults = header.index(key), [], {}
    for number, line in enumerate(cells[1:], start=2):
        if not any(line):
            continue
        while len(line) > len(header) and not line[-1]:
            line.pop()
        name = line[place] if place < len(line) and line[place] not in NOT_AVAILABLE else ""
        where = f"{path.name}/line {number}"
        if not name:
            faults[where] = f"{path}: line {number} has no {key}; correct it"
        elif len(line) != len(header):
            faults[name] = (
                f"{path}: line {number} has {len(line)} cells, the header {len(header)}; correct {name}'s row"
            )
        else:
            rows.append({c: None if cell in NOT_AVAILABLE else cell for c, cell in zip(header, line, strict=True)})
    return rows, faults


def _unquoted(cell: str) -> str:
    """As spreadsheets quote a cell; a quotation mark elsewhere is a character like others, in feet and inches too."""
    if len(cell) > 1 and cell[0] == cell[-1] == '"':
        return cell[1:-1].replace('""', '"').strip()
    return cell


# ------------------------------------------------------------------------------------------ a study's table
def cohort_table(study: Study, scans: Mapping[str, ScanFiles], participants: Participants) -> pl.DataFrame:
    """One row per scan: its person's values, its target, and whether it can be used.

    Parameters
    ----------
    scans : mapping
        From `index_scans`.
    participants : tuple
        From `read_participants`.

    Returns
    -------
    DataFrame, sorted by scan
        People who are listed without an image have a row, too, and what can be no scan; there `scan` has a '/'.
        scan, participant_id, session, age, sex, group, ms_type, edss, other (JSON object of the further
        columns, as text), target (the target column's value, before any threshold), status (`ok`, `failed`,
        `excluded`), reason.

    Raises
    ------
    DatasetError
        A column that the study names (target, covariate, include) does not exist.
    """
    frame, problems = participants
    _check_columns(study, frame.columns)
    rows = {(row["participant_id"], row["session_id"]): row for row in frame.iter_rows(named=True)}
    with_sessions = {participant for participant, session in rows if session is not None}
    table = []
    for name in sorted(scans):
        scan = scans[name]
        if not is_scan(name):
            table.append(_scan_row(study, scan, {}, []))
            continue
        key = (scan.participant_id, scan.session if scan.participant_id in with_sessions else None)
        row = rows.get(key) or rows.get((scan.participant_id, None))
        listed = [problems[scan.participant_id]] if scan.participant_id in problems else []
        if row is None and not listed:
            listed.append(f"{scan.participant_id} has images but no row in participants.tsv; add it")
        elif key not in rows and not listed:
            listed.append(f"{key[0]}_sessions.tsv has no row for {key[1]}; add it")
        table.append(_scan_row(study, scan, row or {}, listed))
    seen = {scan.participant_id for scan in scans.values()}
    for person in dict.fromkeys([*frame["participant_id"], *problems]):
        if person not in seen:
            name = one_line(person if "/" in person else f"{person}/")  # no scan's name: there is none
            missing = ScanFiles(name, one_line(person), None, problems=[_without_image(person, problems)])
            table.append(_scan_row(study, missing, {} if person in problems else rows[person, None], []))
    return pl.DataFrame(table, schema=SCHEMA).sort("scan")


def _without_image(person: str, problems: Mapping[str, str]) -> str:
    return problems.get(
        person, f"{person} is in participants.tsv and has no image named by BIDS; add it or remove the row"
    )


def _check_columns(study: Study, columns: list[str]) -> None:
    cohort = study.cohort
    wanted = {"target": _target(study), "covariates": [c.column for c in cohort.covariates]}
    wanted["include"] = list(cohort.include)
    known = [column for column in columns if column != "session_id"]
    for use, names in wanted.items():
        for name in names:
            if name not in known:
                raise DatasetError(
                    f"participants.tsv has no column {name!r}, which {study.name}'s {use} needs; "
                    f"columns: {', '.join(known)}"
                )


def _target(study: Study) -> list[str]:
    """The column that the model learns, if there is a model."""
    return [study.cohort.target.column] if study.cohort.target else []


def _scan_row(study: Study, scan: ScanFiles, row: Mapping[str, str | None], listed: list[str]) -> dict[str, Any]:
    cohort = study.cohort
    target = _target(study)
    needed = list(dict.fromkeys([*target, *(c.column for c in cohort.covariates)]))
    numbers: dict[str, float | None] = {}
    faults: list[str] = []
    for column in dict.fromkeys([*NUMBERS, *needed]):
        text = row.get(column)
        numbers[column] = _number(text)
        if text is not None and numbers[column] is None:
            hint = "; write a point, not a comma" if _number(text.replace(",", ".")) is not None else ""
            faults.append(f"{scan.scan}: {column} is {text!r}, not a number{hint}")
        elif row and column in needed and text is None:
            use = "target" if column in target else "covariate"
            faults.append(f"{scan.scan}: {column} ({use}) is n/a")
    status, reasons = "ok", [*listed, *scan.problems, *faults]
    excluded = _excluded(cohort.include, row) if row and not listed else None
    if excluded:
        status, reasons = "excluded", [excluded]
    elif reasons:
        status = "failed"
    return {
        "scan": scan.scan,
        "participant_id": scan.participant_id,
        "session": scan.session,
        **_person(row),
        "target": numbers[target[0]] if target else None,
        "status": status,
        "reason": "; ".join(reasons) or None,
    }


def _person(row: Mapping[str, str | None]) -> dict[str, Any]:
    """The columns that the tables know, and all further ones as a JSON object."""
    known = {"participant_id", "session_id", *TEXT, *NUMBERS}
    return {
        **{column: _number(row.get(column)) for column in NUMBERS},
        **{column: row.get(column) for column in TEXT},
        "other": json.dumps({column: row[column] for column in sorted(row) if column not in known}),
    }


def participants_table(participants: Participants) -> pl.DataFrame:
    """One row per person as participants.tsv describes them, with images or without; see `cohort_table`."""
    people = participants[0].filter(pl.col("session_id").is_null()).iter_rows(named=True)
    columns = ("participant_id", "age", "sex", "group", "ms_type", "edss", "other")
    rows = [{"participant_id": row["participant_id"], **_person(row)} for row in people]
    return pl.DataFrame(rows, schema={column: SCHEMA[column] for column in columns}).sort("participant_id")


def _number(text: str | None) -> float | None:
    """A number as tables have it; not what only Python takes for one (`1_000`)."""
    try:
        value = float(text) if text is not None and "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _excluded(include: Mapping[str, Iterable[str | float | int]], row: Mapping[str, str | None]) -> str | None:
    """Why the study does not take this scan; None where it does."""
    for column, accepted in include.items():
        text = row.get(column)
        if text is None or not any(_equal(text, value) for value in accepted):
            return f"{column} is {text or 'n/a'}; the study takes {', '.join(map(str, accepted))}"
    return None


def _equal(text: str, value: str | float | int) -> bool:
    a, b = _number(text), _number(str(value))
    return text == str(value) if a is None or b is None else a == b


def column_values(frame: pl.DataFrame, column: str) -> pl.Series:
    """A column of participants.tsv as numbers, from a table with `other` (`scans`, `participants`).

    Returns
    -------
    Series of Float64, null where the value is n/a or not a number

    Raises
    ------
    ValueError
        No row has this column.
    """
    if column in frame.columns:
        values = [None if value is None else _number(str(value)) for value in frame[column]]
        return pl.Series(column, values, dtype=pl.Float64)
    others = [json.loads(text or "{}") for text in frame["other"]]
    if not any(column in other for other in others):
        known = sorted({key for other in others for key in other})
        raise ValueError(f"no column {column!r}; further columns: {', '.join(known) or 'none'}")
    return pl.Series(column, [_number(other.get(column)) for other in others], dtype=pl.Float64)
