"""Whether maps find a region better than chance, over scans.

Belongs here: means over scans of what `evidence/localisation.py` measures in one, with intervals over people. Does not
belong here: the measures, and what chance is.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from relevance_assets.statistics.resampling import draw_weights, percentile_interval

__all__ = ["localisation_summary"]

_KEYS = ("method", "contrast", "region", "metric")
_NUMBERS = ("value", "chance", "difference", "ci_low", "ci_high")
_SCHEMA = {
    **dict.fromkeys(_KEYS, pl.String),
    **dict.fromkeys(_NUMBERS, pl.Float64),
    **dict.fromkeys(("n", "people", "resamples"), pl.Int64),
}


def localisation_summary(
    rows: pl.DataFrame, *, bootstrap: int = 2000, confidence: float = 0.95, seed: int = 0
) -> pl.DataFrame:
    """Mean value, mean chance, and the mean of value - chance with a percentile bootstrap interval over people.

    A scan counts where both its value and its chance are known, the same scans in all three means. A person is drawn
    with all their scans, the same people for all rows of the result. The interval is not corrected for their number.

    Parameters
    ----------
    rows : scan, participant_id, method, contrast, region, metric, value, chance; null where undefined.

    Returns
    -------
    method, contrast, region, metric, value, chance, difference, ci_low, ci_high, n (scans), people, resamples (that the
    interval rests on: those with such a scan). One row for each that occurs, null numbers where n is 0.

    Raises
    ------
    ValueError
        Columns that lack, a scan twice in one group or of two people, numbers that are not finite.
    """
    needed = ("scan", "participant_id", *_KEYS, "value", "chance")
    if missing := [name for name in needed if name not in rows.columns]:
        raise ValueError(f"localisation: the rows lack the columns {missing}")
    scans = rows.select("scan", "participant_id").unique().sort(pl.col("scan").cast(pl.String))
    if scans["scan"].n_unique() < len(scans):
        raise ValueError("localisation: a scan belongs to two people")
    groups = rows.select(_KEYS).unique().sort(pl.col(_KEYS).cast(pl.String))
    places = rows.join(scans.select("scan").with_row_index("row"), on="scan")
    places = places.join(groups.with_row_index("column"), on=list(_KEYS)).select("row", "column", "value", "chance")
    value, chance = (_matrix(places, name, (len(scans), len(groups))) for name in ("value", "chance"))
    known = np.isfinite(value) & np.isfinite(chance)
    value, chance = np.where(known, value, 0), np.where(known, chance, 0)
    difference = value - chance

    people = scans["participant_id"].to_list()
    weights = draw_weights(people, len(scans), bootstrap, np.random.default_rng(seed))
    size = weights @ known
    drawn = weights @ difference / np.where(size > 0, size, np.nan)
    out = []
    for i, group in enumerate(groups.iter_rows(named=True)):
        n = int(known[:, i].sum())
        low, high, used = percentile_interval(drawn[:, i], confidence)
        row: dict[str, object] = {**group, "n": n, "resamples": used}
        row["people"] = len({people[j] for j in np.flatnonzero(known[:, i])})
        if n:
            means = {"value": value, "chance": chance, "difference": difference}
            row |= {name: float(of_scans[:, i].sum() / n) for name, of_scans in means.items()}
            row |= {"ci_low": low, "ci_high": high}
        out.append(row)
    return pl.DataFrame(out, schema=_SCHEMA)


def _matrix(places: pl.DataFrame, name: str, shape: tuple[int, int]) -> np.ndarray:
    """A number by scan and group, (scans, groups); NaN where it is null or lacks."""
    if not (places[name].is_null() | places[name].is_finite()).all():
        raise ValueError(f"localisation: a {name} is not finite; null is what is undefined")
    at = places["row"].to_numpy(), places["column"].to_numpy()
    seen = np.zeros(shape, dtype=bool)
    seen[at] = True
    if seen.sum() < len(places):
        raise ValueError("localisation: a scan has two rows of the same method, contrast, region and metric")
    matrix = np.full(shape, np.nan)
    matrix[at] = places[name].fill_null(np.nan).to_numpy()
    return matrix
