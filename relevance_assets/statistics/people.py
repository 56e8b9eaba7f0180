"""People of a subject table, chosen by a filter that is kept as text, and families of p that are corrected together.

Belongs here: choosing rows, the two variants with and without outliers, Holm's and Benjamini and Hochberg's
corrections, the frames that rows become. Does not belong here: any test or estimate (`groups.py`, `regressions.py`,
`profile_correlations.py`, `descriptives.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from relevance_assets.statistics.lesion_profile import BANDS, FLAGS, RATIOS, ZONES, outliers

__all__ = [
    "BY_BAND",
    "BY_SEX",
    "EVERYBODY",
    "PANELS",
    "People",
    "correct",
    "frame_of",
    "group_is",
    "holm",
    "in_panel",
    "variants",
    "with_lesions",
]

# conditions by name of stratum
EVERYBODY: dict[str, tuple[str, ...]] = {"all": ()}
BY_SEX: dict[str, tuple[str, ...]] = {"female": ("sex = 0",), "male": ("sex = 1",)}
BY_BAND: dict[str, tuple[str, ...]] = {band: (f"band = '{band}'",) for band in BANDS}
# panels of the study's burden figure: whose, and of what
PANELS = {
    panel: (name, measure)
    for panel, (name, measure) in zip(
        "ABCDEF", ((n, m) for n in ("all", "female", "male") for m in RATIOS[:2]), strict=True
    )
}
_NUMBERS = ("estimate", "effect", "value", "ci_low", "ci_high", "p", "p_corrected", "p_fdr")
_COUNTS = ("n", "n_a", "n_b")
_SHARES = tuple(f"{zone}_ratio" for zone in ZONES)


class People(NamedTuple):
    """Rows of a subject table and the SQL condition that chose them: applied to the variant's table, it gives them."""

    frame: pl.DataFrame
    filter: str = ""

    def where(self, *conditions: str) -> People:
        """Those of them for whom all conditions hold; an unknown (null) condition does not."""
        if not conditions:
            return self
        condition = " AND ".join(conditions)
        text = f"{self.filter} AND {condition}" if self.filter else condition
        return People(self.frame.filter(pl.sql_expr(condition)), text)

    def known(self, *columns: str) -> People:
        """Those of them in whom these columns are known."""
        condition = " AND ".join(f"{column} IS NOT NULL" for column in dict.fromkeys(columns))
        if any(self.frame[column].null_count() for column in columns):
            return self.where(condition)
        return People(self.frame, f"{self.filter} AND {condition}" if self.filter else condition)


def group_is(*names: str) -> str:
    """The condition to be of one of these groups; `group` is a word of SQL and must be quoted."""
    return f"\"group\" = '{names[0]}'" if len(names) == 1 else f'"group" IN ({", ".join(map(repr, names))})'


def with_lesions(*measures: str) -> tuple[str, ...]:
    """The condition that shares of the lesions among these measures need: without a lesion there is no share."""
    return ("lesion_area > 0",) if any(measure in _SHARES for measure in measures) else ()


def in_panel(people: People, panel: str, group: str) -> tuple[str, str, People]:
    """Stratum, measure and people of one group in a panel of the study's burden figure."""
    name, measure = PANELS[panel]
    conditions = (EVERYBODY | BY_SEX)[name]
    stratum = group if name == "all" else f"{group} {name}"
    return stratum, measure, people.where(group_is(group), *conditions).known("age", measure)


def variants(subjects: pl.DataFrame) -> dict[str, People]:
    """Everybody, and who is left without the outliers of the published rule; what is NaN is unknown (null)."""
    subjects = subjects.with_columns(pl.selectors.float().fill_nan(None))
    removed = outliers(subjects).filter(pl.col("flags") >= FLAGS)["participant_id"]
    left = subjects.filter(~pl.col("participant_id").is_in(removed.implode()))
    return {"all": People(subjects), "without_outliers": People(left)}


def holm(p: np.ndarray) -> np.ndarray:
    """The p of one family, corrected by Holm (1979, Scand J Stat 6:65)."""
    order = np.argsort(p)
    found = np.empty(len(p))
    found[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return found


def correct(rows: Sequence[dict[str, Any]], family: Sequence[str]) -> None:
    """Add p_corrected (Holm) and p_fdr (Benjamini and Hochberg) to sound rows that agree in the columns of `family`.

    Rows without a p are no part of a family; what was published stays as it was.
    """
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        p = row.get("p")
        if row["recipe"] == "sound" and p is not None and not math.isnan(p):
            families.setdefault(tuple(row[name] for name in family), []).append(row)
    for members in families.values():
        p = np.array([row["p"] for row in members])
        text = f"holm over {len(p)}: same {', '.join(family)}"
        for row, one, other in zip(members, holm(p), stats.false_discovery_control(p), strict=True):
            row |= {"p_corrected": float(one), "p_fdr": float(other), "correction": text}


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], numbers: Sequence[str] = ()) -> pl.DataFrame:
    """The rows as a table of these columns; what is absent, NaN or infinite is null; `numbers` are numbers here too."""
    kinds: dict[str, Any] = dict.fromkeys((*_NUMBERS, *numbers), pl.Float64()) | dict.fromkeys(_COUNTS, pl.Int64())
    schema = {name: kinds.get(name, pl.String()) for name in columns}
    table = pl.DataFrame({name: [row.get(name) for row in rows] for name in columns}, schema=schema, strict=False)
    number = pl.selectors.float()
    return table.with_columns(pl.when(number.is_finite()).then(number))
