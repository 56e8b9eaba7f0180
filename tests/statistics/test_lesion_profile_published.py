"""Printed numbers of MS-DeepBrain-Study: verdicts as its data bear them out, values by formulas written out here."""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import special, stats

from relevance_assets.statistics.lesion_profile import COLUMNS, read_subjects
from relevance_assets.statistics.lesion_profile_published import (
    VERDICTS,
    print_verdict,
    published_lesion_profile,
    recipe_values,
)

FILE = Path(__file__).parents[2].parent / "shared" / "data" / "ms-deepbrain-tables" / "subjects.csv"
#: What lesion_profile.md, section 3, marks X; all else there is marked E.
REFUTED = {
    "people",
    "healthy controls",
    "lesion burden MS : HC",
    "least lesion burden MS : HC by age",
    "greatest lesion burden MS : HC by age",
    "effect r of lesion burden",
    "SD of the periventricular share, %",
    "p of age, all",
    "p of age, men",
    "p of age, women",
    "age MS, third quartile",
    "periventricular share all, first quartile",
    "periventricular share all, third quartile",
    "periventricular share all, SD",
    "periventricular share, U of men and women",
    "periventricular share, p of men and women",
    "paraventricular share, U of men and women",
    "paraventricular share, p of men and women",
    "juxtacortical share, U of men and women",
    "juxtacortical share, p of men and women",
    "juxtacortical share, r of men and women",
    "periventricular share, p said to be below 0.05 / 3 = 0.017",
    "n HC",
    "n MS",
    "n HC men",
}
SELF_REFUTED = {
    "people",
    "healthy controls",
    "periventricular share, U of men and women",
    "paraventricular share, U of men and women",
    "juxtacortical share, U of men and women",
    "periventricular share, p said to be below 0.05 / 3 = 0.017",
}


@pytest.fixture(scope="module")
def people() -> list[dict[str, str]]:
    if not FILE.exists():
        pytest.skip("no ../shared/data/ms-deepbrain-tables")
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def found(people: list[dict[str, str]]) -> pl.DataFrame:
    return published_lesion_profile(read_subjects(pl.read_csv(FILE)))


@pytest.fixture(scope="module")
def values(people: list[dict[str, str]]) -> dict[str, float]:
    return {name: value for name, (value, _) in recipe_values(read_subjects(pl.read_csv(FILE))).items()}


# ------------------------------------------------------------------------------------------------ the real table
def test_every_printed_number_has_the_verdict_of_the_specification(found: pl.DataFrame) -> None:
    by_name = {row["measure"]: row for row in found.iter_rows(named=True)}
    assert len(by_name) == found.height == 172
    for name, row in by_name.items():
        bad = row["verdict"] in ("not reproducible", "contradicts itself")
        assert bad == (name in REFUTED), row
        assert row["ours"] is not None
        assert row["n"] > 0
    assert {name for name, row in by_name.items() if row["verdict"] == "contradicts itself"} == SELF_REFUTED
    counts = Counter(found["verdict"])
    print(f"printed numbers: {found.height}; {dict(counts)}")
    assert set(counts) == set(VERDICTS)


def test_the_headlines_and_what_they_are(found: pl.DataFrame) -> None:
    by_name = {row["measure"]: row for row in found.iter_rows(named=True)}
    expected = {
        "lesion burden MS : HC": (5.5, 15.80, "5.386 (n 95)"),
        "effect r of lesion burden": (0.82, 0.5067, "AUC of lesion_ratio: 0.827 "),
        "periventricular share of men, %": (61.85, 61.8505, "58.49 (n 108)"),
        "SD of the periventricular share, %": (28.35, 28.64, "26.73 (n 363)"),
        "p of the periventricular share, men and women": (0.018, 0.0179, "0.02303"),
        "periventricular share, U of men and women": (
            12847,
            16943.5,
            "0.05041; printed: 0.018; the U of women: 12540.5",
        ),
        "p of ventricle_ratio": (0.327, 0.3269, "0.006176"),
        "periventricular share all, first quartile": (32.18, 33.33, "30-39 alone: 32.18"),
        "p of sex": (0.142, 0.1420, "0.1357 (n 1381)"),
    }
    for name, (published, ours, said) in expected.items():
        row = by_name[name]
        assert row["published"] == published
        assert row["ours"] == pytest.approx(ours, rel=5e-4, abs=5e-5 if ours < 1 else 5e-3), name
        assert said in row["note"], row["note"]


# ----------------------------------------------------------------------- values, from the file by formulas of their own
def column(people: list[dict[str, str]], name: str, **where: str) -> np.ndarray:
    rows = [p for p in people if all(p[key] == value for key, value in where.items())]
    return np.array([float(p[name]) if p[name] else np.nan for p in rows])


def share(people: list[dict[str, str]], part: str, whole: str, **where: str) -> np.ndarray:
    """With the study's 1e-10, which orders equal shares by the whole: without it U of the sexes is 16,961.5."""
    return 100 * column(people, part, **where) / (column(people, whole, **where) + 1e-10)


def pooled_t(a: np.ndarray, b: np.ndarray) -> float:
    df = len(a) + len(b) - 2
    pooled = (((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / df
    t = (a.mean() - b.mean()) / math.sqrt(pooled * (1 / len(a) + 1 / len(b)))
    return float(special.betainc(df / 2, 0.5, df / (df + t * t)))


def rank_sum(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """U by counting pairs, its p by the normal distribution with ties and continuity, and |z| / sqrt(N)."""
    u = float((a[:, None] > b[None, :]).sum() + 0.5 * (a[:, None] == b[None, :]).sum())
    both = np.concatenate([a, b])
    n, m = len(both), len(a) * len(b)
    ties = sum(t**3 - t for t in Counter(both.tolist()).values())
    z = (abs(u - m / 2) - 0.5) / math.sqrt(m / 12 * (n + 1 - ties / (n * (n - 1))))
    return u, math.erfc(z / math.sqrt(2)), z / math.sqrt(n)


def test_tests_of_two_groups(people: list[dict[str, str]], values: dict[str, float]) -> None:
    zone = [share(people, "TotalPeriArea", "TotalWMHArea", StudyGroup="MS", PatientSex=s) for s in "10"]
    u, p, r = rank_sum(*zone)
    name = "periventricular_ratio MS sexes"
    assert values[f"{name} u"] == u
    assert values[f"{name} u p"] == pytest.approx(p, rel=1e-9)
    assert values[f"{name} r"] == pytest.approx(r, rel=1e-9)
    assert values[f"{name} t p"] == pytest.approx(pooled_t(*zone), rel=1e-6)
    burden = [share(people, "TotalWMHArea", "TotalIntracranialArea", StudyGroup=g) for g in ("HC", "MS")]
    u, _, r = rank_sum(*burden)
    assert values["lesion_ratio HC MS all u"] == u
    assert values["lesion_ratio HC MS all r"] == pytest.approx(r, rel=1e-9)
    assert values["lesion_ratio HC MS all auc"] == pytest.approx(1 - u / (999 * 381))
    ages = [column(people, "PatientAge", StudyGroup=g, PatientSex="1") for g in ("HC", "MS")]
    assert values["age HC MS men t p"] == pytest.approx(pooled_t(*(a[~np.isnan(a)] for a in ages)), rel=1e-9)


def test_sexes_of_the_groups(people: list[dict[str, str]], values: dict[str, float]) -> None:
    a, b, c, d = (len(column(people, "PatientAge", StudyGroup=g, PatientSex=s)) for g in ("HC", "MS") for s in "10")
    n = a + b + c + d
    chi2 = n * (abs(a * d - b * c) - n / 2) ** 2 / ((a + b) * (c + d) * (a + c) * (b + d))
    assert values["sex chi2 p"] == pytest.approx(math.erfc(math.sqrt(chi2 / 2)), rel=1e-9)
    assert values["women per man MS"] == d / c
    assert values["women %"] == 100 * (b + d) / n


def test_bands(people: list[dict[str, str]], values: dict[str, float]) -> None:
    age, zone = (
        column(people, "PatientAge", StudyGroup="MS"),
        share(people, "TotalPeriArea", "TotalWMHArea", StudyGroup="MS"),
    )
    edges = (18, 30, 40, 50, 60, 69)
    bands = [zone[(age >= low) & (age < high)] for low, high in itertools.pairwise(edges)]
    assert [len(b) for b in bands] == [90, 137, 103, 45, 5]
    assert values["periventricular_ratio all mean_of_means"] == pytest.approx(np.mean([b.mean() for b in bands]))
    assert values["periventricular_ratio all median_of_medians"] == pytest.approx(
        np.median([np.median(b) for b in bands])
    )
    assert values["periventricular_ratio all least_mean"] == pytest.approx(min(b.mean() for b in bands))
    assert values["periventricular_ratio MS all sd"] == pytest.approx(
        math.sqrt(((zone - zone.mean()) ** 2).sum() / 380)
    )
    ordered = np.sort(zone)  # quantile at 0.25 of 381: the 96th, exactly
    assert values["periventricular_ratio MS all q1"] == pytest.approx(ordered[95])


def test_correlations(people: list[dict[str, str]], values: dict[str, float]) -> None:
    age = column(people, "PatientAge", StudyGroup="MS")
    burden = share(people, "TotalVentricleArea", "TotalIntracranialArea", StudyGroup="MS")
    kept = ~np.isnan(age)
    ranks = [stats.rankdata(v[kept]) for v in (age, burden)]
    assert values["rho ventricle_ratio age MS"] == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-9)
    assert values["r age ventricle_ratio MS all"] == pytest.approx(np.corrcoef(age[kept], burden[kept])[0, 1], rel=1e-9)


# ------------------------------------------------------------------------------------------------------ verdicts
@pytest.mark.parametrize(
    ("text", "ours", "verdict", "how"),
    [
        ("0.120", 0.1195, "exact", ""),
        ("0.120", 0.12049999, "exact", ""),
        ("0.12", 0.1301, "not reproducible", ""),
        ("0.10", 0.0994, "exact", ""),
        ("8.4", 8.4551, "rounds to", "cut off"),
        ("45.2", 45.25, "rounds to", "half-way"),
        ("45.3", 45.25, "exact", ""),
        ("45.3", 45.35, "rounds to", "cut off"),
        ("1.3", 1.2499, "rounds to", "twice"),
        ("1,381", 1380.0, "not reproducible", ""),
        ("1,380", 1380.0, "exact", ""),
        ("-0.072", -0.07199, "exact", ""),
        ("-0.07", -0.0799, "rounds to", "cut off"),
        ("0", 0.0, "exact", ""),
        ("0.5", math.nan, "not reproducible", "undefined"),
    ],
)
def test_verdict_of_digits(text: str, ours: float, verdict: str, how: str) -> None:
    found, said = print_verdict(text, ours)
    assert found == verdict
    assert how in said


# --------------------------------------------------------------------------------------------------- made tables
def made(**columns: list) -> pl.DataFrame:
    height = len(next(iter(columns.values())))
    usual: dict[str, list] = {name: [100.0] * height for name in COLUMNS}
    usual |= {"PatientID": [str(i) for i in range(height)], "PatientSex": [0.0] * height, "PatientAge": [None] * height}
    return read_subjects(pl.DataFrame(usual | columns))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_table_of_few_people_has_no_value_where_none_can_be(n: int) -> None:
    found = published_lesion_profile(made(StudyGroup=["HC"] * n + ["MS"] * n))
    assert found.height == 172
    by_name = {row["measure"]: row for row in found.iter_rows(named=True)}
    assert by_name["people"]["ours"] == 2 * n
    for name in (
        "p of sex",
        "rho of age and ventricle_ratio MS",
        "least age",
        "women per man HC",
        "lesion burden MS 60+, %",
    ):
        assert by_name[name]["ours"] is None, name
        assert by_name[name]["verdict"] == "not reproducible"


def test_a_group_without_people_is_named() -> None:
    with pytest.raises(ValueError, match="no people of group MS"):
        published_lesion_profile(made(StudyGroup=["HC"] * 3))
