"""A finished subject table: one row per person, with what somebody else measured of ventricles and lesions.

Belongs here: reading such a CSV file without trust. Does not belong here: statistics of it, the same table made from
images (`assets/subjects.py`).
"""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path
from typing import Any

import polars as pl

from relevance_assets.cohort.text import one_line, read_text

__all__ = ["PARTS", "SUBJECTS", "SubjectTableError", "read_subject_table"]

PARTS = ("intracranial", "ventricle", "lesion", "periventricular", "paraventricular", "juxtacortical")
SUBJECTS: dict[str, Any] = {
    "participant_id": pl.String(),
    "age": pl.Float64(),
    "sex": pl.String(),
    "group": pl.String(),
    **dict.fromkeys(PARTS, pl.Float64()),
}
# Column -> the name that MS-DeepBrain-Study's table has for it.
ALSO = {
    "participant_id": "PatientID",
    "age": "PatientAge",
    "sex": "PatientSex",
    "group": "StudyGroup",
    "intracranial": "TotalIntracranialArea",
    "ventricle": "TotalVentricleArea",
    "lesion": "TotalWMHArea",
    "periventricular": "TotalPeriArea",
    "paraventricular": "TotalParaArea",
    "juxtacortical": "TotalJuxtArea",
}
SEXES = {"0": "F", "1": "M", "f": "F", "m": "M", "female": "F", "male": "M", "": None, "n/a": None}
MISSING = ("", "n/a", "na", "nan")
NAMED = 3  # faults in a message
OLDEST = 120  # years
ROUNDED = 1e-3  # share of the lesions by which zones may miss them


class SubjectTableError(ValueError):
    """The table cannot be used; the message names the file, the row and the remedy."""


def read_subject_table(path: Path) -> pl.DataFrame:
    """People of a CSV file, in its order.

    Parameters
    ----------
    path
        UTF-8, columns `participant_id, age, sex, group, intracranial, ventricle, lesion, periventricular,
        paraventricular, juxtacortical`, or the names of MS-DeepBrain-Study's table (`PatientID`, ...), in any order;
        further columns are left out. Sizes are all in one unit (pixels, mm², mm³). Age, sex and group may be empty.

    Returns
    -------
    DataFrame
        Columns of `SUBJECTS`: `participant_id` as `sub-<label>`; sex F or M.

    Raises
    ------
    SubjectTableError
        No such file, no table, a column is missing, or any row is wrong: nobody is left out in silence.
    """
    try:
        lines = list(csv.reader(io.StringIO(read_text(path), newline=None), strict=True))
    except FileNotFoundError:
        raise SubjectTableError(
            f"{path}: no such file; import the table again, or set cohort.subjects to null"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise SubjectTableError(f"{path}: cannot be read ({error}); save it as UTF-8 text, commas between") from None
    header = [name.strip() for name in lines[0]] if lines else []
    places: dict[str, int] = {}
    for column, other in ALSO.items():
        found = [index for index, name in enumerate(header) if name in (column, other)]
        if len(found) != 1:
            problem = "no column" if not found else "more than one column"
            raise SubjectTableError(f"{path}: {problem} {column} ({other}); it needs {', '.join(SUBJECTS)}")
        places[column] = found[0]
    rows, faults = [], []
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            faults.append(f"line {number} has {len(cells)} cells, the header {len(header)}")
            continue
        row, wrong = _row({column: cells[place].strip() for column, place in places.items()})
        rows.append(row)
        faults += [f"line {number}: {fault}" for fault in wrong]
    frame = pl.DataFrame(rows, schema=SUBJECTS, orient="row")
    doubled = frame.filter(pl.col("participant_id").is_duplicated())["participant_id"]
    if doubled.len():
        faults.append(f"{doubled[0]} is listed more than once; keep one row")
    if faults:
        more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise SubjectTableError(f"{path}: {'; '.join(faults[:NAMED])}{more}")
    if frame.is_empty():
        raise SubjectTableError(f"{path}: lists nobody")
    return frame


def _row(cells: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Values of one person, and what is wrong with them."""
    faults = []
    label = cells["participant_id"].removeprefix("sub-")
    if not re.fullmatch("[A-Za-z0-9]+", label):
        faults.append(f"participant_id {one_line(cells['participant_id'])!r} is not letters and digits")
    sex = cells["sex"].lower().removesuffix(".0")
    if sex not in SEXES:
        faults.append(f"sex {one_line(cells['sex'])!r} is none of F, M, 0 (female), 1 (male)")
    row: dict[str, Any] = {"participant_id": f"sub-{label}", "sex": SEXES.get(sex), "group": cells["group"] or None}
    for column in ("age", *PARTS):
        text = cells[column]
        absent = text.lower() in MISSING
        value = None if absent else _number(text)
        if (absent and column != "age") or (not absent and (value is None or value < 0)):
            faults.append(f"{column} is {one_line(text)!r}, not a number of 0 or more; write a point, not a comma")
        row[column] = value
    return row, faults or _contradictions(row)


def _contradictions(row: dict[str, Any]) -> list[str]:
    """What cannot be true together."""
    faults = []
    if row["age"] is not None and row["age"] > OLDEST:
        faults.append(f"age is {row['age']:g} years")
    brain, zones = row["intracranial"], [row[part] for part in PARTS[3:]]
    for part in ("ventricle", "lesion"):
        if row[part] >= brain:
            faults.append(f"{part} is {row[part]:g}, intracranial only {brain:g}")
    whole = all(value == int(value) for value in (row["lesion"], *zones))
    if not math.isclose(row["lesion"], sum(zones), rel_tol=ROUNDED, abs_tol=1.5 if whole else 1e-9):  # 1.5: rounding
        faults.append(f"the three zones sum to {sum(zones):g}, lesion is {row['lesion']:g}")
    return faults


def _number(text: str) -> float | None:
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
