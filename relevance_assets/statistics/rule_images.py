"""Scores of many rules by image: rows of a table as matrices, and their means over images.

Belongs here: what the choice of a rule rests on. Does not belong here: the choice (`rule_selection.py`), the scores
(`evidence/mask_scores.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from relevance_assets.statistics.resampling import draw_weights, percentile_interval

__all__ = [
    "GRID",
    "KEYS",
    "TEST",
    "VALIDATION",
    "Column",
    "Table",
    "by_choice",
    "image_means",
    "known_or_none",
    "column_means",
    "summary",
]

#: The method whose cells are chosen from.
GRID = "lrp_grid"
#: One choice is made for each of these.
KEYS = ("explained", "score", "quantile")
VALIDATION, TEST = "validation", "test"
_KEY = {"explained": pl.String, "score": pl.String, "quantile": pl.Float64}
MEANS = {
    **_KEY,
    **dict.fromkeys(("set", "method"), pl.String),
    **dict.fromkeys(("gamma", "epsilon"), pl.Float64),
    "form": pl.String,
    **dict.fromkeys(("value", "ci_low", "ci_high", "chance", "ceiling"), pl.Float64),
    **dict.fromkeys(("n", "people"), pl.Int64),
}


def image_means(
    rows: pl.DataFrame,
    *,
    published_n: int | None = None,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    leaking: bool = False,
) -> pl.DataFrame:
    """Means over images, ours and the published sum over a fixed number.

    Parameters
    ----------
    rows, leaking
        As in `select_rule`.
    published_n
        By what the published form divides; the publication has 460 whatever the number of images. By default the number
        of images that the set has.

    Returns
    -------
    frame, columns of `MEANS`
        form `mean_over_images`: over those with a value, with a percentile bootstrap interval over people;
        `sum_over_n_as_published`: sum of the values / n, what is null counted as 0, without interval; its n is that by
        which the sum was divided.

    Raises
    ------
    ValueError
        As in `select_rule`.
    """
    out: list[dict[str, Any]] = []
    for key, columns, tables in by_choice(rows, leaking=leaking):
        for name, table in tables.items():
            weights = draw_weights(table.people, len(table.people), bootstrap, np.random.default_rng(seed))
            drawn = column_means(table.value, weights)
            for number, column in enumerate(columns):
                row = key | {"set": name} | column._asdict()
                ours = summary(table, number, drawn[:, number], confidence)
                n = len(table.people) if published_n is None else published_n
                total = float(np.nansum(table.value[:, number])) / n if n else None
                out.append(row | ours | {"form": "mean_over_images"})
                out.append(row | {"form": "sum_over_n_as_published", "value": total, "n": n, "people": ours["people"]})
    return pl.DataFrame(out, schema=MEANS)


class Column(NamedTuple):
    method: str
    gamma: float | None
    epsilon: float | None


class Table(NamedTuple):
    """One set's images: values by image and column, NaN where undefined, and whose they are."""

    value: np.ndarray
    chance: np.ndarray
    ceiling: np.ndarray
    people: list[str]
    classes: np.ndarray
    correct: np.ndarray

    def only(self, inside: np.ndarray) -> Table:
        """The images where `inside` is true."""
        people = [person for person, there in zip(self.people, inside, strict=True) if there]
        value, chance, ceiling = (array[inside] for array in (self.value, self.chance, self.ceiling))
        return Table(value, chance, ceiling, people, self.classes[inside], self.correct[inside])


def by_choice(
    rows: pl.DataFrame, *, leaking: bool = False
) -> Iterator[tuple[dict[str, Any], list[Column], dict[str, Table]]]:
    """Key, columns and tables of each choice, after checks; images are those of the grid."""
    needed = ("scan", "participant_id", "set", "class", "correct", "explained", "method", "gamma", "epsilon")
    if missing := [name for name in (*needed, "score", "value") if name not in rows.columns]:
        raise ValueError(f"rule selection: the rows lack the columns {missing}")
    absent = [pl.lit(None, pl.Float64).alias(c) for c in ("quantile", "chance", "ceiling") if c not in rows.columns]
    rows = rows.with_columns(*absent, pl.col("gamma", "epsilon").cast(pl.Float64).fill_nan(None))
    if other := sorted(set(rows["set"].unique()) - {VALIDATION, TEST}):
        raise ValueError(f"rule selection: sets {other}; only {VALIDATION} and {TEST} have a part in it")
    people = rows.group_by("participant_id").agg(pl.col("set").n_unique()).filter(pl.col("set") > 1)
    if len(people) and not leaking:
        name = people["participant_id"].cast(pl.String).sort()[0]
        raise ValueError(f"rule selection: {name} is in {VALIDATION} and {TEST}; split by person")
    numbers = pl.col("value", "chance", "ceiling")
    if not rows.select((numbers.is_null() | numbers.is_finite()).all()).to_numpy().all():
        raise ValueError("rule selection: a value, chance or ceiling is not finite; null is what is undefined")
    for key, part in sorted(rows.partition_by(KEYS, as_dict=True).items(), key=lambda item: [str(k) for k in item[0]]):
        named = part.select("method", "gamma", "epsilon").unique().sort("method", "gamma", "epsilon")
        columns = [Column(*row) for row in named.iter_rows()]
        tables = {name: _table(part.filter(pl.col("set") == name), named) for name in (VALIDATION, TEST)}
        yield dict(zip(KEYS, key, strict=True)), columns, tables


def _table(part: pl.DataFrame, named: pl.DataFrame) -> Table:
    grid = part.filter(pl.col("method") == GRID)
    scans = grid.select("scan", "participant_id", "class", "correct").unique().sort(pl.col("scan").cast(pl.String))
    if scans["scan"].n_unique() < len(scans):
        raise ValueError("rule selection: an image belongs to two people or classes, or is both correct and wrong")
    places = part.join(scans.select("scan").with_row_index("row"), on="scan")
    keys = ["method", "gamma", "epsilon"]
    places = places.join(named.with_row_index("column"), on=keys, nulls_equal=True)
    at = places["row"].to_numpy(), places["column"].to_numpy()
    if places.select("row", "column").is_duplicated().any():
        raise ValueError("rule selection: an image has two rows of the same method, gamma, epsilon and score")
    arrays = []
    for name in ("value", "chance", "ceiling"):
        array = np.full((len(scans), len(named)), np.nan)
        array[at] = places[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
        arrays.append(array)
    value, chance, ceiling = arrays
    people = scans["participant_id"].cast(pl.String).to_list()
    classes, correct = (np.array(scans[name].to_list(), dtype=object) for name in ("class", "correct"))
    return Table(value, chance, ceiling, people, classes, correct)


def column_means(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean of what is known, in every resample: (resamples, columns), or (1, columns) of the images as they are."""
    known = np.isfinite(values)
    weights = np.ones((1, len(values))) if weights is None else weights
    size = weights @ known
    found: np.ndarray = weights @ np.where(known, values, 0) / np.where(size > 0, size, np.nan)
    return found


def summary(table: Table, number: int, drawn: np.ndarray, confidence: float) -> dict[str, Any]:
    """Mean of a column with interval, and of chance and ceiling over the same images."""
    known = np.isfinite(table.value[:, number])
    people = len({person for person, there in zip(table.people, known, strict=True) if there})
    low, high, resamples = percentile_interval(drawn, confidence)
    row: dict[str, Any] = {"n": int(known.sum()), "people": people, "resamples": resamples}
    row |= {"ci_low": low, "ci_high": high} if people > 1 else {}
    for name, array in (("value", table.value), ("chance", table.chance), ("ceiling", table.ceiling)):
        row[name] = known_or_none(column_means(array[known][:, [number]])[0, 0])
    return row


def known_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
