"""MS-DeepBrain-Study's printed numbers beside what its own subject table gives, with a verdict for each.

Belongs here: the values that its recipes give, kept apart by name, and the verdicts. Does not belong here: the printed
numbers (`published/lesion_profile_subjects.yaml`), the recipes that other tables need too (`lesion_profile.py`), sound
statistics of the same people.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from relevance_assets.statistics.lesion_profile import (
    BANDS,
    RATIOS,
    ZONES,
    age_burden,
    band_summary,
    correlation_matrix,
    outliers,
)

__all__ = ["VERDICTS", "print_verdict", "published_lesion_profile", "recipe_values"]

VERDICTS = ("exact", "rounds to", "not reproducible", "contradicts itself")
MEASURES = ("age", "intracranial_area", *RATIOS)
SEXES: tuple[tuple[str, int | None], ...] = (("all", None), ("women", 0), ("men", 1))
OTHER = "without_outliers"
_LIST = Path(__file__).parent / "published" / "lesion_profile_subjects.yaml"
_SCHEMA = {
    "place": pl.String,
    "measure": pl.String,
    "text": pl.String,
    "published": pl.Float64,
    "recipe": pl.String,
    "variant": pl.String,
    "ours": pl.Float64,
    "n": pl.Int64,
    "verdict": pl.String,
    "note": pl.String,
}
Values = dict[str, tuple[float, int]]


def published_lesion_profile(subjects: pl.DataFrame) -> pl.DataFrame:
    """Every printed number that a subject table can answer, with our value by the study's recipe.

    Parameters
    ----------
    subjects : DataFrame
        As `lesion_profile.read_subjects` gives it, of both groups, everybody.

    Returns
    -------
    DataFrame
        place (headline, table), measure (unique), text (as printed), published (its number), recipe (what was
        computed), variant (`all`: everybody, `without_outliers`: without the study's), ours (null where undefined), n
        (people it is of), verdict, note. The verdict is `contradicts itself` where the number cannot stand beside
        another number of the same publication, else as `print_verdict` says.

    Raises
    ------
    ValueError
        A group without people.
    """
    import yaml

    for group in ("HC", "MS"):
        if subjects.filter(pl.col("group") == group).is_empty():
            raise ValueError(f"published numbers: no people of group {group}; both HC and MS are needed")
    odd = outliers(subjects)["participant_id"]
    kept = subjects.filter(~pl.col("participant_id").is_in(odd.implode()))
    values = {"all": recipe_values(subjects), OTHER: recipe_values(kept)}
    rows = []
    for section in yaml.safe_load(_LIST.read_text(encoding="utf-8")):
        about = {name: section[name] for name in ("place", "recipe", "variant")}
        rows += [about | _row(number, values, section["variant"]) for number in section["numbers"]]
    return pl.DataFrame(rows, schema=_SCHEMA)


def _row(number: Mapping[str, Any], values: Mapping[str, Values], variant: str) -> dict[str, Any]:
    text = number["text"]
    published = _number(text)
    ours, n = values[variant].get(number["ours"], (math.nan, 0))
    verdict, how = print_verdict(text, ours)
    notes = [how, number.get("note", "")]
    if "implies" in number:
        implied = _implied(number["implies"], published, values[variant])
        if math.isfinite(implied) and not _agrees(number["printed"], implied):
            verdict = "contradicts itself"
            notes.insert(0, f"{number['implies']}: {_short(implied)}; printed: {number['printed']}")
    for recipe, name in number.get("nearest", {}).items():
        other = name.removeprefix("O ")
        value, people = values[OTHER if other != name else variant].get(other, (math.nan, 0))
        notes.append(f"{recipe}: {_short(value)} (n {people})")
    return {
        "measure": number["measure"],
        "text": text,
        "published": published,
        "ours": None if math.isnan(ours) else ours,
        "n": n,
        "verdict": verdict,
        "note": "; ".join(note for note in notes if note),
    }


def _short(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.6g}"


# ------------------------------------------------------------------------------------------------------ verdicts
def print_verdict(text: str, ours: float) -> tuple[str, str]:
    """Whether our value prints as the published text, and what else than rounding that took.

    Parameters
    ----------
    text : str
        A number as printed, e.g. `1,381` or `0.120`: its digits say how it was rounded.
    ours : float
        NaN where there is none.

    Returns
    -------
    (str, str)
        `exact`: rounding to the printed digits gives the text; `rounds to`: only cutting off, rounding twice, or
        rounding a half to even does; `not reproducible`: none of them. The second says which.
    """
    places = len(text.partition(".")[2])
    scaled = ours * 10.0**places
    wanted = round(_number(text) * 10.0**places)
    if not math.isfinite(ours):
        return "not reproducible", "undefined"
    if wanted == _half_up(scaled):
        return "exact", ""
    if abs(abs(scaled - wanted) - 0.5) < 1e-9 and wanted % 2 == 0:
        return "rounds to", "exactly half-way, rounded to even"
    if wanted == math.trunc(scaled) and not scaled.is_integer():
        return "rounds to", "cut off, not rounded"
    if wanted == _half_up(_half_up(scaled * 10) / 10):
        return "rounds to", "rounded twice"
    return "not reproducible", ""


def _half_up(value: float) -> int:
    """Nearest whole number, halves away from zero; a hair of rounding error does not decide."""
    return int(math.copysign(math.floor(abs(value) + 0.5 + 1e-9), value))


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _agrees(printed: str, value: float) -> bool:
    if printed.startswith("<"):
        return value < float(printed[1:])
    return print_verdict(printed, value)[0] != "not reproducible"


def _implied(what: str, published: float, values: Values) -> float:
    """What a printed number would mean for another printed one."""
    if what == "three times this p":
        return 3 * published
    if what.startswith("p of this U of "):
        women, men = values["women MS"][0], values["men MS"][0]
        spread, _ = values.get(f"{what.removeprefix('p of this U of ')} MS sexes u spread", (math.nan, 0))
        z = (abs(published - women * men / 2) - 0.5) / spread  # continuity correction, as scipy's default
        return float(2 * stats.norm.sf(z))
    return 100 * values["women HC" if what.endswith("controls") else "women"][0] / published


# -------------------------------------------------------------------------------------------------------- values
def recipe_values(subjects: pl.DataFrame) -> Values:
    """Every value by its name, with the people it is of: `age HC all mean`, `lesion_ratio MS 60+ mean`, ..."""
    parts = (_counts, _summaries, _band_values, _group_tests, _sex_tests, _burden_ratios, _correlations)
    return {name: (float(value), int(n)) for part in parts for name, value, n in part(subjects)}


def _of(subjects: pl.DataFrame, group: str, who: str = "all") -> pl.DataFrame:
    sex = dict(SEXES)[who]
    part = subjects.filter(pl.col("group") == group)
    return part if sex is None else part.filter(pl.col("sex") == sex)


Found = list[tuple[str, float, int]]


def _counts(subjects: pl.DataFrame) -> Found:
    found: Found = []
    ages = subjects["age"].drop_nulls().to_numpy()
    for name, part in (("", subjects), *((f" {g}", _of(subjects, g)) for g in ("HC", "MS"))):
        women, men = (float((part["sex"] == sex).sum()) for sex in (0, 1))
        found += [(f"people{name}", part.height, part.height)]
        found += [(f"women{name}", women, part.height), (f"men{name}", men, part.height)]
        found += [(f"women %{name}", 100 * women / part.height, part.height)]
        found += [(f"men %{name}", 100 * men / part.height, part.height)]
        found += [(f"women per man{name}", women / men if men else math.nan, part.height)]
    for group, (who, _) in itertools.product(("HC", "MS"), SEXES):
        aged = _of(subjects, group, who)["age"].drop_nulls().len()
        found.append((f"aged {group} {who}", aged, aged))
    if not ages.size:
        return found
    return [*found, ("age minimum", ages.min(), ages.size), ("age maximum", ages.max(), ages.size)]


def _summaries(subjects: pl.DataFrame) -> Found:
    found: Found = []
    for group, (who, _), measure in itertools.product(("HC", "MS"), SEXES, MEASURES):
        found += _summary(f"{measure} {group} {who}", _of(subjects, group, who)[measure])
    with_lesions = _of(subjects, "MS").filter(pl.col("lesion_area") > 0)
    for measure in RATIOS:
        found += _summary(f"{measure} MS lesions", with_lesions[measure])
    return found


def _summary(name: str, column: pl.Series) -> Found:
    values = column.drop_nulls().to_numpy()
    if not values.size:
        return []
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    spread = values.std(ddof=1) if values.size > 1 else math.nan
    named = {"mean": values.mean(), "sd": spread, "q1": low, "median": middle, "q3": high}
    return [(f"{name} {stat}", value, values.size) for stat, value in named.items()]


def _band_values(subjects: pl.DataFrame) -> Found:
    found: Found = []
    for group, band, measure in itertools.product(("HC", "MS"), BANDS, RATIOS):
        found += _summary(f"{measure} {group} {band}", _of(subjects, group).filter(pl.col("band") == band)[measure])
    banded = _of(subjects, "MS").filter(pl.col("band").is_not_null())
    if banded["sex"].n_unique() < 2:
        return found
    who = {"All": "all", "Female": "women", "Male": "men"}
    for row in band_summary(subjects).iter_rows(named=True):
        name = f"{row['zone']}_ratio {who[row['subgroup']]}"
        for column in ("mean_of_means", "median_of_medians", "least_mean", "greatest_mean"):
            found.append((f"{name} {column}", row[column], row["n"]))
    return found


def _group_tests(subjects: pl.DataFrame) -> Found:
    found: Found = []
    for measure, (who, _) in itertools.product(MEASURES, SEXES):
        parts = [_of(subjects, group, who)[measure].drop_nulls().to_numpy() for group in ("HC", "MS")]
        found += _two(f"{measure} HC MS {who}", *parts)
    table = np.array([[(_of(subjects, group)["sex"] == sex).sum() for sex in (1, 0)] for group in ("HC", "MS")])
    found.append(("sex chi2 p", _yates(table), int(table.sum())))
    return [*found, ("sex chi2 p, one man more", _yates(table + np.array([[1, 0], [0, 0]])), int(table.sum()) + 1)]


def _yates(table: np.ndarray) -> float:
    if not (table.sum(axis=0).all() and table.sum(axis=1).all()):
        return math.nan
    return float(stats.chi2_contingency(table, correction=True).pvalue)


def _sex_tests(subjects: pl.DataFrame) -> Found:
    found: Found = []
    patients = _of(subjects, "MS")
    for name, part in (("MS", patients), ("MS lesions", patients.filter(pl.col("lesion_area") > 0))):
        for zone in ZONES:
            men, women = (part.filter(pl.col("sex") == sex)[f"{zone}_ratio"].to_numpy() for sex in (1, 0))
            found += _two(f"{zone}_ratio {name} sexes", men, women)
    return found


def _two(name: str, a: np.ndarray, b: np.ndarray) -> Found:
    """Student's t, and Mann-Whitney's U of the first sample with r = |z of p| / sqrt(N), as published."""
    n = a.size + b.size
    if min(a.size, b.size) < 2 or np.ptp(np.concatenate([a, b])) == 0:
        return []
    u, p = stats.mannwhitneyu(a, b)
    _, ties = np.unique(np.concatenate([a, b]), return_counts=True)
    spread = math.sqrt(a.size * b.size / 12 * (n + 1 - (ties**3.0 - ties).sum() / (n * (n - 1))))
    named = {
        "t p": stats.ttest_ind(a, b).pvalue,
        "u": u,
        "u of women": a.size * b.size - u,
        "u p": p,
        "u spread": spread,
        "auc": max(u, a.size * b.size - u) / (a.size * b.size),
        "r": abs(stats.norm.isf(p / 2)) / math.sqrt(n),
    }
    return [(f"{name} {what}", value, n) for what, value in named.items()]


def _burden_ratios(subjects: pl.DataFrame) -> Found:
    """Lesion burden of patients by that of controls: of all, by band; and of the oldest by the youngest patients."""
    name, n = "lesion_ratio", subjects.height
    patients, controls = (_of(subjects, group) for group in ("MS", "HC"))
    found: Found = [(f"{name} MS : HC", _ratio(patients[name].mean(), controls[name].mean()), n)]
    by_band = []
    for band in BANDS:
        a, b = (part.filter(pl.col("band") == band)[name] for part in (patients, controls))
        by_band.append(_ratio(a.mean(), b.mean()))
        found.append((f"{name} MS : HC {band}", by_band[-1], a.len() + b.len()))
        found.append((f"median {name} MS : HC {band}", _ratio(a.median(), b.median()), a.len() + b.len()))
    found += [(f"{end} {name} MS : HC of bands", f(by_band), n) for end, f in (("least", np.min), ("greatest", np.max))]
    old, young = (patients.filter(pl.col("band") == band)[name] for band in (BANDS[-1], BANDS[0]))
    return [*found, (f"{name} MS {BANDS[-1]} : {BANDS[0]}", _ratio(old.mean(), young.mean()), old.len() + young.len())]


def _ratio(a: Any, b: Any) -> float:
    return a / b if a is not None and b else math.nan


def _correlations(subjects: pl.DataFrame) -> Found:
    found: Found = []
    for group in ("HC", "MS"):
        pairs = correlation_matrix(subjects, group)
        p = pairs["p"].drop_nulls().to_numpy().astype(float)
        corrected = stats.false_discovery_control(p) if p.size else p
        n = int(pairs["n"][0])
        found += [(f"pairs p {group}", (p < 0.05).sum(), n), (f"pairs BH {group}", (corrected < 0.05).sum(), n)]
        found.append((f"pairs Bonferroni {group}", (p < 0.05 / pairs.height).sum(), n))
        found += [
            (f"rho {row['first']} {row['second']} {group}", math.nan if row["r"] is None else row["r"], n)
            for row in pairs.iter_rows(named=True)
        ]
    if min(_of(subjects, group, who)["age"].n_unique() for group in ("HC", "MS") for who, _ in SEXES) < 4:
        return found  # too few ages for a quadratic
    who = dict(zip("ABCDEF", ("all", "all", "women", "women", "men", "men"), strict=True))
    for row in age_burden(subjects).iter_rows(named=True):
        found.append((f"r age {row['measure']} {row['group']} {who[row['panel']]}", row["r"], row["n"]))
    return found
