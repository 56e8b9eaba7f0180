"""In which order a person's scans came.

Belongs here: the order of a person's scans. Does not belong here: what is counted once per person (`assets/`).
"""

from __future__ import annotations

import re

import polars as pl

__all__ = ["first_scans", "in_order"]


def first_scans(scans: pl.DataFrame, outcome: str) -> pl.DataFrame:
    """Each person's first scan among those whose `outcome` is known.

    Age decides where all these scans of the person have one; where one lacks, it could lie anywhere, so the names of
    the sessions decide, as they do between equal ages: in natural order, `ses-M6` before `ses-M12`.

    Parameters
    ----------
    scans : scan, participant_id, session, age (years), `outcome`, and whatever else; null where unknown.

    Returns
    -------
    Rows of `scans` in their order, one per person; people without a known outcome have none.

    Examples
    --------
    >>> visits = {"scan": ["a_ses-M12", "a_ses-M6"], "participant_id": ["a", "a"], "session": ["ses-M12", "ses-M6"]}
    >>> frame = pl.DataFrame(visits).with_columns(age=pl.lit(None, pl.Float64), edss=pl.lit(2.0))
    >>> first_scans(frame, "edss")["scan"].to_list()
    ['a_ses-M6']
    """
    known = scans.filter(pl.col(outcome).is_not_null())
    return scans.filter(pl.col("scan").is_in([visits[0] for visits in in_order(known).values()]))


def in_order(scans: pl.DataFrame) -> dict[str, list[str]]:
    """Each person's scans, the earliest first; by age and sessions as `first_scans` has it.

    Parameters
    ----------
    scans : scan, participant_id, session, age (years), and whatever else; null where unknown.
    """
    age = pl.when(pl.col("age").is_not_null().all().over("participant_id")).then(pl.col("age"))
    ordered = sorted(
        scans.select("scan", "participant_id", "session", age).iter_rows(),
        key=lambda row: (row[3] or 0.0, _natural(row[2] or ""), row[0]),
    )
    found: dict[str, list[str]] = {}
    for scan, person, *_ in ordered:
        found.setdefault(person, []).append(scan)
    return found


def _natural(name: str) -> list[str | int]:
    """`ses-M12` -> ['ses-M', 12, '']: text and numbers take turns, so that two names can be compared."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]
