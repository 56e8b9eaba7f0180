"""The subject-level statistics of MS-DeepBrain-Study with their recipes as published, faults included.

Belongs here: age bands, shares, the outlier rule, and the tables that the study prints, from its definitions. Does not
belong here: sound versions of the same questions, which are other functions under other names; images.

Source: github Mahdi-Bashiri/MS-DeepBrain-Study, phase 5. Areas are sums of pixels, whatever the study calls them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

__all__ = [
    "AREAS",
    "BANDS",
    "RATIOS",
    "age_burden",
    "age_statistics",
    "band_summary",
    "correlation_matrix",
    "detailed",
    "outliers",
    "read_subjects",
    "with_ratios",
]

COLUMNS = {
    "PatientID": "participant_id",
    "PatientAge": "age",
    "PatientSex": "sex",
    "StudyGroup": "group",
    "TotalIntracranialArea": "intracranial_area",
    "TotalVentricleArea": "ventricle_area",
    "TotalWMHArea": "lesion_area",
    "TotalPeriArea": "periventricular_area",
    "TotalParaArea": "paraventricular_area",
    "TotalJuxtArea": "juxtacortical_area",
}
EDGES = (18, 30, 40, 50, 60, 69)  # years, left-closed; who is 69 or older is in no band
BANDS = ("18-29", "30-39", "40-49", "50-59", "60+")
ZONES = ("periventricular", "paraventricular", "juxtacortical")
AREAS = ("intracranial_area", "ventricle_area", "lesion_area", *(f"{zone}_area" for zone in ZONES))
RATIOS = ("ventricle_ratio", "lesion_ratio", *(f"{zone}_ratio" for zone in ZONES))
# the order in which flags are counted and named
CHECKED = ("age", "intracranial_area", "ventricle_area", "lesion_area", *RATIOS[:2], *AREAS[3:], *RATIOS[2:])
TINY = 1e-10
FENCE, MODIFIED_Z, FLAGS, FEWEST = 2.0, 3.5, 3, 5
CORRELATED = (*RATIOS[2:], *RATIOS[:2], "age", "sex")


def read_subjects(frame: pl.DataFrame) -> pl.DataFrame:
    """The study's table by our names, with ratios and age bands; sex is 0 (female) or 1 (male).

    Parameters
    ----------
    frame : DataFrame
        Columns as in the study's CSV, one row per person.

    Raises
    ------
    ValueError
        Names a column that is missing.
    """
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"the subject table has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    types = dict.fromkeys(COLUMNS.values(), pl.Float64()) | {"participant_id": pl.String(), "group": pl.String()}
    return with_ratios(frame.select(pl.col(a).alias(b) for a, b in COLUMNS.items()).cast(types))  # type: ignore[arg-type]


def with_ratios(subjects: pl.DataFrame) -> pl.DataFrame:
    """Shares in per cent and the age band; who has no lesion has 0 % in every zone, as published."""
    shares = [
        (100 * pl.col(part) / (pl.col(whole) + TINY)).alias(name)
        for name, part, whole in (
            ("ventricle_ratio", "ventricle_area", "intracranial_area"),
            ("lesion_ratio", "lesion_area", "intracranial_area"),
            *((f"{zone}_ratio", f"{zone}_area", "lesion_area") for zone in ZONES),
        )
    ]
    band = pl.coalesce(
        pl.when((pl.col("age") >= low) & (pl.col("age") < high)).then(pl.lit(name))
        for low, high, name in zip(EDGES, EDGES[1:], BANDS, strict=False)
    )
    return subjects.with_columns(*shares, band.alias("band"))


def outliers(subjects: pl.DataFrame, fewest: int = FLAGS) -> pl.DataFrame:
    """People with `fewest` flags or more (published: three) within their group and age band of at least five.

    A value is flagged outside two interquartile ranges from the quartiles if its modified z (by the median absolute
    deviation) is above 3.5 too. Who is in no band is never looked at.

    Returns
    -------
    DataFrame
        participant_id, group, band, sex, flags, variables (`; ` between them), in the order of the subjects.
    """
    found: dict[str, list[str]] = {}
    for (group, band), part in subjects.filter(pl.col("band").is_not_null()).group_by("group", "band"):
        if part.height < FEWEST:
            continue
        for name in CHECKED:
            values = part[name].to_numpy()
            known = values[~np.isnan(values)]
            if known.size < FEWEST:
                continue
            low, high = np.quantile(known, (0.25, 0.75))
            middle = np.median(known)
            deviation = np.median(np.abs(known - middle))
            z = np.abs(0.6745 * (values - middle) / (deviation or TINY))
            fence = FENCE * (high - low)
            far = ((values < low - fence) | (values > high + fence)) & (z > MODIFIED_Z)
            for person in part["participant_id"].filter(pl.Series(far)):
                found.setdefault(person, []).append(f"{name}_{group}_{band}")
    flagged = {person: names for person, names in found.items() if len(names) >= fewest}
    rows = subjects.filter(pl.col("participant_id").is_in(list(flagged)))
    return rows.select("participant_id", "group", "band", "sex").with_columns(
        pl.Series("flags", [len(flagged[person]) for person in rows["participant_id"]], dtype=pl.Int64),
        pl.Series("variables", ["; ".join(flagged[person]) for person in rows["participant_id"]], dtype=pl.String),
    )


def detailed(subjects: pl.DataFrame, measure: str) -> pl.DataFrame:
    """A measure by group, age band and sex; `low` and `high` are the median -/+ half an SD, printed as quartiles."""
    rows = []
    for group, band, sex in itertools.product(("HC", "MS"), BANDS, (1, 0)):
        part = subjects.filter((pl.col("group") == group) & (pl.col("band") == band) & (pl.col("sex") == sex))
        values = part[measure].to_numpy()
        if not values.size:
            continue
        sd = float(values.std(ddof=1)) if values.size > 1 else float("nan")
        middle = float(np.median(values))
        summary = {"n": values.size, "mean": float(values.mean()), "sd": sd}
        extremes = {"minimum": float(values.min()), "maximum": float(values.max()), "median": middle}
        place = {"group": group, "band": band, "sex": sex}
        rows.append(place | summary | extremes | {"low": middle - sd / 2, "high": middle + sd / 2})
    return pl.DataFrame(rows)


def band_summary(subjects: pl.DataFrame) -> pl.DataFrame:
    """Zones in MS patients: unweighted mean of the bands' means, median of their medians, ranges of both.

    A band of one person weighs as much as one of a hundred. Who is in no band is left out.
    """
    rows = []
    patients = subjects.filter((pl.col("group") == "MS") & pl.col("band").is_not_null())
    for name, part in (("All", patients), *((n, patients.filter(pl.col("sex") == s)) for n, s in _SEXES)):
        for zone in ZONES if part.height else ():
            share = pl.col(f"{zone}_ratio")
            bands = part.group_by("band", maintain_order=True).agg(
                share.mean().alias("mean"), share.median().alias("median")
            )
            mean, median = bands["mean"].to_numpy(), bands["median"].to_numpy()
            rows.append(
                {"subgroup": name, "zone": zone, "n": part.height, "bands": bands.height}
                | {"mean_of_means": mean.mean(), "median_of_medians": float(np.median(median))}
                | {"least_mean": mean.min(), "greatest_mean": mean.max()}
                | {"least_median": median.min(), "greatest_median": median.max()}
            )
    return pl.DataFrame(rows)


_SEXES = (("Female", 0), ("Male", 1))


def _panels(subjects: pl.DataFrame) -> Iterator[tuple[str, str, str, pl.DataFrame]]:
    """Panel, measure, group and people of the study's burden figure: all, women, men; ventricles, lesions."""
    people = (subjects, *(subjects.filter(pl.col("sex") == code) for _, code in _SEXES))
    for panel, (part, measure) in zip("ABCDEF", itertools.product(people, RATIOS[:2]), strict=True):
        for group in ("HC", "MS"):
            rows = part.filter(pl.col("group") == group).drop_nulls(("age", measure))
            if rows["age"].n_unique() > 2:  # a quadratic needs three ages
                yield panel, measure, group, rows


def age_statistics(subjects: pl.DataFrame) -> pl.DataFrame:
    """Ages by panel of the burden figure: mean, SD, quartiles (linear), range; of people with an age."""
    rows = []
    for panel, _, group, part in _panels(subjects):
        ages = part["age"].to_numpy()
        low, middle, high = np.quantile(ages, (0.25, 0.5, 0.75))
        rows.append(
            {"panel": panel, "group": group, "n": ages.size, "mean": ages.mean(), "sd": ages.std(ddof=1)}
            | {"median": middle, "lower_quartile": low, "upper_quartile": high, "iqr": high - low}
            | {"minimum": ages.min(), "maximum": ages.max(), "range": ages.max() - ages.min()}
        )
    return pl.DataFrame(rows)


def age_burden(subjects: pl.DataFrame) -> pl.DataFrame:
    """Pearson correlation of age and burden by panel, its word, and the quadratic on standardised age.

    `r_squared` is the square of Pearson's r, which the study prints beside the quadratic; `quadratic_r_squared` is the
    quadratic's own.
    """
    rows = []
    for panel, measure, group, part in _panels(subjects):
        age, values = part["age"].to_numpy(), part[measure].to_numpy()
        varies = np.ptp(values) > 0
        r, p = stats.pearsonr(age, values) if varies else (np.nan, np.nan)
        z = (age - age.mean()) / age.std(ddof=1)
        fit = np.polyfit(z, values, 2)
        rest = ((values - np.polyval(fit, z)) ** 2).sum() / ((values - values.mean()) ** 2).sum() if varies else np.nan
        rows.append(
            {"panel": panel, "measure": measure, "group": group, "n": age.size}
            | {"r": float(r), "p": float(p), "strength": _word(float(r)) if varies else None}
            | {"c0": fit[2], "c1": fit[1], "c2": fit[0]}
            | {"r_squared": float(r) ** 2, "quadratic_r_squared": 1 - rest}
        )
    return pl.DataFrame(rows)


def _word(r: float) -> str:
    size = abs(r)
    return "Negligible" if size < 0.1 else "Weak" if size < 0.3 else "Moderate" if size < 0.5 else "Strong"


def correlation_matrix(subjects: pl.DataFrame, group: str, names: Sequence[str] = CORRELATED) -> pl.DataFrame:
    """Every pair of variables in one group, complete cases: Spearman, or Pearson where the study's gate lets it.

    The gate: both variables normal by Shapiro-Wilk (p > 0.05) and |rho - r| < 0.1. A constant variable gives null.

    Returns
    -------
    DataFrame
        first, second, n, method, r, p: a row per pair.
    """
    part = subjects.filter(pl.col("group") == group).select(names).drop_nulls()
    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(names, 2):
        a, b = part[first].to_numpy(), part[second].to_numpy()
        row = {"first": first, "second": second, "n": part.height, "method": "spearman", "r": None, "p": None}
        if part.height > 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
            found, straight = stats.spearmanr(a, b), stats.pearsonr(a, b)
            normal = min(stats.shapiro(a).pvalue, stats.shapiro(b).pvalue) > 0.05
            if normal and abs(found.statistic - straight.statistic) < 0.1:
                row["method"], found = "pearson", straight
            row |= {"r": float(found.statistic), "p": float(found.pvalue)}
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)
