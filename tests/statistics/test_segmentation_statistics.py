"""Means over scans and agreement of sources, against plain formulas and libraries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.segmentation.metrics import COUNTS
from relevance_assets.statistics.segmentation import source_agreement, summary
from relevance_assets.study import Statistics

SETTINGS = Statistics(bootstrap=1000)
ONE = {"rule": "lesion_3d", "zone": "all"}


def burdens(x: list[float], y: list[float], scans: list[str] | None = None) -> pl.DataFrame:
    names = scans or [f"sub-{number}" for number in range(len(x))]
    return pl.concat(
        pl.DataFrame({"scan": names, "volume_mm3": values}, schema_overrides={"volume_mm3": pl.Float64}).with_columns(
            source=pl.lit(source), **{name: pl.lit(value) for name, value in ONE.items()}
        )
        for source, values in (("a", x), ("b", y))
    )


def test_agreement_by_plain_formulas() -> None:
    random = np.random.default_rng(3)
    x = random.gamma(2, 500, size=30)
    y = 0.8 * x + random.normal(0, 90, size=30) + 40
    row = source_agreement(burdens(list(x), list(y)), ["a", "b"], SETTINGS).row(0, named=True)
    assert row["n"] == 30
    assert row["pearson"] == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-12)
    sxy = sum((a - x.mean()) * (b - y.mean()) for a, b in zip(x, y, strict=True)) / 30
    lin = 2 * sxy / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    assert row["concordance"] == pytest.approx(lin, abs=1e-12)
    assert row["difference_mm3"] == pytest.approx((y - x).mean())
    half = 1.96 * np.std(y - x, ddof=1)
    assert row["limit_low_mm3"] == pytest.approx((y - x).mean() - half)
    assert row["limit_high_mm3"] == pytest.approx((y - x).mean() + half)
    assert row["ci_low"] < lin < row["ci_high"]
    assert row["resamples"] == 1000
    again = source_agreement(burdens(list(x), list(y)), ["a", "b"], SETTINGS).row(0, named=True)
    assert again == row


def test_concordance_knows_what_correlation_does_not() -> None:
    """Twice as much everywhere: r is 1; Lin's coefficient of 0..4 and 0..8 by hand is 2 * 4 / (2 + 8 + 4)."""
    found = source_agreement(burdens([0, 1, 2, 3, 4], [0, 2, 4, 6, 8]), ["a", "b"], SETTINGS).row(0, named=True)
    assert found["pearson"] == pytest.approx(1)
    assert found["concordance"] == pytest.approx(8 / 14)
    assert found["difference_mm3"] == 2
    turned = source_agreement(burdens([0, 1, 2, 3, 4], [0, 2, 4, 6, 8]), ["b", "a"], SETTINGS).row(0, named=True)
    assert (turned["source_a"], turned["difference_mm3"]) == ("b", -2)


def test_agreement_of_nothing_is_null() -> None:
    row = source_agreement(burdens([0, 0, 0], [0, 0, 0]), ["a", "b"], SETTINGS).row(0, named=True)
    assert row["pearson"] is row["concordance"] is row["ci_low"] is None
    assert (row["n"], row["resamples"], row["difference_mm3"]) == (3, 0, 0)
    one = source_agreement(burdens([5], [7]), ["a", "b"], SETTINGS).row(0, named=True)
    assert one["pearson"] is one["limit_low_mm3"] is None
    assert one["difference_mm3"] == 2
    assert one["concordance"] == 0  # nothing varies, and they differ
    assert source_agreement(burdens([1, 2], [1, 2]), ["a", "c"], SETTINGS).is_empty()


def test_only_scans_of_both_sources_count() -> None:
    frame = burdens([1, 2, 3], [1, 2, 3]).filter((pl.col("scan") != "sub-0") | (pl.col("source") == "a"))
    assert source_agreement(frame, ["a", "b"], SETTINGS)["n"].to_list() == [2]


def test_visits_of_a_person_are_drawn_together() -> None:
    """Five people with the same two scans each: every resample is the sample, and the interval a point."""
    scans = [f"sub-{person}_ses-{visit}" for person in range(5) for visit in (1, 2)]
    row = source_agreement(burdens([1, 5] * 5, [2, 5] * 5, scans), ["a", "b"], SETTINGS).row(0, named=True)
    assert row["n"] == 10
    assert row["ci_low"] == pytest.approx(row["concordance"])
    assert row["ci_high"] == pytest.approx(row["concordance"])
    few = source_agreement(burdens([1, 5] * 4, [2, 5] * 4, scans[:8]), ["a", "b"], SETTINGS).row(0, named=True)
    assert (few["ci_low"], few["resamples"]) == (None, 0), "four people have no interval"
    assert few["concordance"] == pytest.approx(row["concordance"])


def scores(values: Sequence[float | None]) -> pl.DataFrame:
    frame = pl.DataFrame({"scan": [f"sub-{n}" for n in range(len(values))], "value": values})
    return frame.with_columns(pl.col("value").cast(pl.Float64), metric=pl.lit("dice"), **{"class": pl.lit("wmh")})


def counts(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    """Pixels in both, found, true of one class; all of 100 pixels a scan are right where both are."""
    parts = []
    for number, (both, predicted, true) in enumerate(rows):
        wrong = predicted + true - 2 * both
        found = [("wmh", both, predicted, true, 2, 3.0), ("all", 100 - wrong, 100, 100, 0, 0.0)]
        frame = pl.DataFrame(found, schema=COUNTS, orient="row")
        parts.append(frame.with_columns(scan=pl.lit(f"sub-{number}"), study=pl.lit("x")))
    return pl.concat(parts)


def test_means_over_scans_beside_the_pooled_form() -> None:
    known = [0.2, 0.9, 0.7, 0.4, 0.8]
    pixels = [(1, 5, 5), (9, 10, 10), (7, 10, 10), (2, 5, 5), (8, 10, 10), (0, 0, 0)]
    frame = summary(scores([*known, None]), counts(pixels), SETTINGS)
    mean = frame.row(by_predicate=pl.col("form") == "mean_over_scans", named=True)
    assert mean["value"] == pytest.approx(0.6)
    assert mean["n"] == 5  # a scan without a value is none of them
    random = np.random.default_rng(0)
    draws = [random.choice(known, 5).mean() for _ in range(20_000)]
    np.testing.assert_allclose([mean["ci_low"], mean["ci_high"]], np.quantile(draws, [0.025, 0.975]), atol=0.03)
    pooled = dict(frame.filter(form="pooled_as_published", **{"class": "wmh"}).select("metric", "value").iter_rows())
    assert pooled["dice"] == pytest.approx(54 / 80, abs=1e-6)
    assert pooled["precision"] == pytest.approx(27 / 40, abs=1e-6)
    assert pooled["hd95_mm"] == pytest.approx(0.5 * 18 / 12)
    every = frame.row(by_predicate=(pl.col("class") == "all") & (pl.col("metric") == "accuracy"), named=True)
    assert every["value"] == pytest.approx(1 - (8 + 2 + 6 + 6 + 4) / 600)
    assert (every["n"], every["ci_low"]) == (6, None)
