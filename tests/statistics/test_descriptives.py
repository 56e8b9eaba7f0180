"""Descriptive numbers: intervals against their definitions, published figures to the printed digit."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.statistics.descriptives import descriptives, mean_interval, median_interval
from relevance_assets.statistics.groups import draws
from relevance_assets.statistics.people import variants


@pytest.fixture(scope="module")
def described(real: pl.DataFrame) -> pl.DataFrame:
    return descriptives(variants(real), draws(10_000, 0))


def value(frame: pl.DataFrame, **where: Any) -> dict[str, Any]:
    where = {"variant": "all"} | where
    return frame.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)


@pytest.mark.parametrize(
    ("analysis", "measure", "stratum", "statistic", "expected", "n"),
    [
        ("zones_over_bands", "periventricular_ratio", "MS", "mean_of_means", 58.0173, 380),
        ("zones_over_bands", "periventricular_ratio", "MS male", "mean_of_means", 61.8505, 108),
        ("zones_over_bands", "periventricular_ratio", "MS female", "mean_of_means", 56.4505, 272),
        ("zones_by_band", "periventricular_ratio", "MS 18-29", "mean", 44.9695, 90),
        ("zones_by_band", "periventricular_ratio", "MS 60+", "mean", 71.4272, 5),
        ("people", "lesion_ratio", "MS 18-29", "mean", 0.132738, 90),
        ("people", "lesion_ratio", "MS 60+", "mean", 0.714951, 5),
        ("people", "lesion_ratio", "HC", "mean", 0.017199, 999),
        ("people", "periventricular_ratio", "MS", "mean", 55.61, 363),
        ("people", "periventricular_ratio", "MS", "sd", 26.73, 363),
        ("table_1", "periventricular_ratio", "MS", "mean", 52.98, 381),
        ("table_1", "periventricular_ratio", "MS", "sd", 28.64, 381),
        ("table_1", "lesion_ratio", "MS", "median", 0.099453, 381),
        ("table_1", "age", "HC", "mean", 34.73, 991),
        ("table_1", "age", "MS", "upper_quartile", 45, 380),
        ("table_1", "age", "MS male", "upper_quartile", 45.25, 108),
        ("table_1", "paraventricular_ratio", "MS", "upper_quartile", 33.12, 381),
        ("table_1", "juxtacortical_ratio", "MS", "lower_quartile", 4.79, 381),
    ],
)
def test_figures_of_the_spec(
    described: pl.DataFrame, analysis: str, measure: str, stratum: str, statistic: str, expected: float, n: int
) -> None:
    found = value(described, analysis=analysis, measure=measure, stratum=stratum, statistic=statistic)
    places = len(str(expected).partition(".")[2])
    assert (round(found["value"], places), found["n"]) == (expected, n)


def test_the_oldest_band_has_an_interval(described: pl.DataFrame) -> None:
    """Spec, section 3: mean of five .715, CI .23 to 1.20 (bootstrap); that of t reaches below 0."""
    where = {"analysis": "people", "measure": "lesion_ratio", "stratum": "MS 60+"}
    row = value(described, statistic="mean_bootstrap", **where)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.23, 1.20), abs=0.02)
    assert value(described, statistic="mean", **where)["ci_low"] < 0


def test_fake_quartiles_are_called_so(described: pl.DataFrame, real: pl.DataFrame) -> None:
    where = {"analysis": "bands_by_sex", "measure": "lesion_ratio", "stratum": "MS 30-39 female"}
    chosen = (pl.col("group") == "MS") & (pl.col("band") == "30-39") & (pl.col("sex") == 0)
    part = real.filter(chosen)["lesion_ratio"].to_numpy()
    half = part.std(ddof=1) / 2
    for end, sign in (("25", -1), ("75", 1)):
        found = value(described, statistic=f"iqr_{end}_as_published", **where)
        assert found["value"] == pytest.approx(np.median(part) + sign * half)


def test_every_row_is_counted_by_its_filter(described: pl.DataFrame, real: pl.DataFrame) -> None:
    subjects = {name: people.frame for name, people in variants(real).items()}
    for variant, text, n in described.select("variant", "filter", "n").unique().iter_rows():
        assert subjects[variant].filter(pl.sql_expr(text)).height == n
    assert (
        not described.select("analysis", "recipe", "variant", "measure", "stratum", "statistic").is_duplicated().any()
    )


def test_the_mean_has_students_interval() -> None:
    values = np.array([1.0, 4, 2, 8])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval(values[:1]) == (None, None)


@pytest.mark.parametrize("n", [1, 5, 6, 7, 9, 20, 50, 101])
def test_the_median_has_the_exact_interval(n: int) -> None:
    """The i-th smallest is below the median where i or more of n coins show heads; the next narrower pair misses."""
    low, high = median_interval(np.random.default_rng(0).permutation(np.arange(1.0, n + 1)))

    def missed(i: int) -> float:
        return 2 * sum(stats.binom.pmf(k, n, 0.5) for k in range(i))

    if missed(1) > 0.05:
        assert (low, high) == (None, None)
        return
    assert low is not None
    assert high == n + 1 - low
    assert missed(int(low)) <= 0.05 < missed(int(low) + 1)
