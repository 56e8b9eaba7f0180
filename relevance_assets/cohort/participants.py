"""Who was scanned: participants.tsv and sessions.tsv, joined to the scans of a study.

Belongs here: reading these tables, the study's choice of people, its target. Does not belong here: finding
images (`bids.py`), who is in which set (`splits.py`).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from relevance_assets.cohort.bids import DatasetError, ScanFiles
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
def read_participants(bids: Path) -> Participants:
    """participants.tsv, and one more row for each session that a `sub-*_sessions.tsv` describes.

    Returns
    -------
    frame : DataFrame
        `participant_id`, `session_id` (null in the rows of participants.tsv itself) and the columns of the
        files, all as text. In a session's row the columns of sessions.tsv win, `n/a` included; others are
        the person's.
    problems : dict
        participant_id to one line, for people listed twice and sessions.tsv files that cannot be used.

    Raises
    ------
    DatasetError
        participants.tsv is missing, empty or malformed.
    """
    path = bids / "participants.tsv"
    if not path.exists():
        raise DatasetError(f"{path}: no such file; list the participants there, first column participant_id")
    rows = _read_tsv(path, "participant_id")
    if not rows:
        raise DatasetError(f"{path}: lists no participant")
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
    problems = {
        participant: f"{participant} is listed {count} times in participants.tsv; keep one row, and values "
        f"per session in {participant}_sessions.tsv"
        for participant, count in counts.items()
        if count > 1
    }
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
    path = bids / participant / f"{participant}_sessions.tsv"
    if not path.exists():
        return []
    try:
        rows = _read_tsv(path, "session_id")
    except DatasetError as error:
        problems.setdefault(participant, str(error))
        return []
    sessions = [row["session_id"] for row in rows]
    doubled = sorted({str(session) for session in sessions if sessions.count(session) > 1})
    if doubled:
        problems.setdefault(participant, f"{path}: {doubled[0]} is listed more than once; keep one row")
        return []
    return [{**person, **row, "participant_id": participant} for row in rows]


def _read_tsv(path: Path, key: str) -> list[dict[str, str | None]]:
    """Rows of a tab-separated file with a header; `n/a` and empty cells are None."""
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t", quotechar='"'))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); save it as UTF-8 text with tabs") from None
    lines = [[cell.strip() for cell in line] for line in lines]
    header = lines[0] if lines else []
    if key not in header:
        raise DatasetError(f"{path}: no column {key}; columns: {', '.join(header) or 'none'}")
    if len(set(header)) != len(header):
        raise DatasetError(f"{path}: a column name occurs twice: {', '.join(header)}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        if len(line) != len(header):
            raise DatasetError(f"{path}: line {number} has {len(line)} cells, the header {len(header)}")
        row = {name: None if cell in NOT_AVAILABLE else cell for name, cell in zip(header, line, strict=True)}
        if row[key] is None:
            raise DatasetError(f"{path}: line {number} has no {key}")
        rows.append(row)
    return rows


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
        key = (scan.participant_id, scan.session if scan.participant_id in with_sessions else None)
        row = rows.get(key) or rows.get((scan.participant_id, None))
        listed = [problems[scan.participant_id]] if scan.participant_id in problems else []
        if row is None:
            listed.append(f"{scan.participant_id} has images but no row in participants.tsv; add it")
        elif key not in rows and not listed:
            listed.append(f"{key[0]}_sessions.tsv has no row for {key[1]}; add it")
        table.append(_scan_row(study, scan, row or {}, listed))
    return pl.DataFrame(table, schema=SCHEMA)


def _check_columns(study: Study, columns: list[str]) -> None:
    cohort = study.cohort
    wanted = {"target": [cohort.target.column], "covariates": [c.column for c in cohort.covariates]}
    wanted["include"] = list(cohort.include)
    known = [column for column in columns if column != "session_id"]
    for use, names in wanted.items():
        for name in names:
            if name not in known:
                raise DatasetError(
                    f"participants.tsv has no column {name!r}, which {study.name}'s {use} needs; "
                    f"columns: {', '.join(known)}"
                )


def _scan_row(study: Study, scan: ScanFiles, row: Mapping[str, str | None], listed: list[str]) -> dict[str, Any]:
    cohort = study.cohort
    needed = list(dict.fromkeys([cohort.target.column, *(c.column for c in cohort.covariates)]))
    numbers: dict[str, float | None] = {}
    faults: list[str] = []
    for column in dict.fromkeys([*NUMBERS, *needed]):
        text = row.get(column)
        numbers[column] = _number(text)
        if text is not None and numbers[column] is None:
            faults.append(f"{scan.scan}: {column} is {text!r}, not a number")
        elif row and column in needed and text is None:
            use = "target" if column == cohort.target.column else "covariate"
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
        "target": numbers[cohort.target.column],
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
    try:
        value = float(text) if text is not None else math.nan
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
