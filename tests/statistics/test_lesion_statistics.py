"""All tables at once: of odd subject tables, of the same seed, of the real people."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from relevance_assets.statistics.lesion_statistics import flagged, lesion_statistics, table_makers
from relevance_assets.statistics.people import variants

Maker = Callable[..., pl.DataFrame]
TABLES = ("group_comparisons", "correlations", "regressions", "descriptives", "outliers")
ZONES = ("periventricular_area", "paraventricular_area", "juxtacortical_area")


@pytest.fixture(scope="module")
def found(made: Maker) -> dict[str, pl.DataFrame]:
    return lesion_statistics(made(60, 40), seed=1, resamples=50)


def test_tables_say_of_every_row_what_it_is(found: dict[str, pl.DataFrame]) -> None:
    assert tuple(found) == TABLES
    for name, table in found.items():
        assert not table.is_empty()
        if name != "outliers":
            about = table.select("analysis", "recipe", "variant", "stratum", "filter")
            assert about.null_count().row(0) == (0,) * 5
            assert set(table["recipe"]) == {"as_published", "sound"}
            assert set(table["variant"]) == {"all", "without_outliers"}
    assert (found["outliers"]["removed"] == (found["outliers"]["flags"] >= 3)).all()


def test_the_same_seed_gives_the_same_tables(made: Maker, found: dict[str, pl.DataFrame]) -> None:
    again = lesion_statistics(made(60, 40), seed=1, resamples=50)
    assert all(found[name].equals(again[name]) for name in TABLES)
    other = table_makers(made(60, 40), seed=2, resamples=50)["group_comparisons"]()
    assert not found["group_comparisons"]["ci_low"].equals(other["ci_low"])
    assert found["group_comparisons"]["p"].equals(other["p"])


@pytest.mark.parametrize(
    ("controls", "patients", "columns"),
    [
        (0, 0, {}),
        (1, 1, {}),
        (2, 3, {}),
        (25, 0, {}),
        (0, 25, {}),
        (12, 9, dict.fromkeys(("lesion_area", *ZONES), 0.0)),
        (12, 9, {"sex": 0.0}),
        (9, 6, {"sex": None}),
        (9, 6, {"age": float("nan")}),
        (12, 9, {"age": 40.0, "ventricle_area": 5.0}),
        (12, 9, {"group": None}),
        (12, 9, {"lesion_area": None}),
        (12, 9, {"juxtacortical_area": float("nan")}),
    ],
)
def test_odd_people_are_no_error(made: Maker, controls: int, patients: int, columns: dict[str, Any]) -> None:
    n = controls + patients
    types = {"group": pl.String}
    series = {name: pl.Series([value] * n, dtype=types.get(name, pl.Float64)) for name, value in columns.items()}
    people = made(controls, patients, **series)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = lesion_statistics(people, resamples=20)
    for table in found.values():
        numbers = table.select(pl.selectors.float())
        assert numbers.select(pl.all().is_nan().any() | pl.all().is_infinite().any()).row(0).count(True) == 0
    if not (controls and patients) or "group" in columns:
        assert {"HC", "MS"}.isdisjoint(found["group_comparisons"]["group_a"])
        assert "group_difference" not in found["correlations"]["analysis"]
    for row in found["descriptives"].select("variant", "filter", "n").unique().iter_rows(named=True):
        if row["variant"] == "all":
            assert people.with_columns(pl.selectors.float().fill_nan(None)).filter(pl.sql_expr(row["filter"])).height


def test_who_has_no_lesion_has_no_share_in_sound_rows(made: Maker) -> None:
    nothing = {
        name: np.concatenate([np.zeros(10), np.full(20, 5.0 if name != "lesion_area" else 15.0)])
        for name in ("lesion_area", *ZONES)
    }
    found = table_makers(made(0, 30, **nothing), resamples=20)["descriptives"]()
    where = (pl.col("measure") == "juxtacortical_ratio") & (pl.col("stratum") == "MS") & (pl.col("statistic") == "mean")
    rows = {row["analysis"]: row for row in found.filter(where, pl.col("variant") == "all").iter_rows(named=True)}
    assert (rows["people"]["n"], rows["people"]["value"]) == (20, pytest.approx(100 / 3))
    assert (rows["table_1"]["n"], rows["table_1"]["value"]) == (30, pytest.approx(200 / 9))
    share = found.filter(
        pl.col("statistic") == "share_with_lesions", pl.col("stratum") == "MS", pl.col("variant") == "all"
    )
    (row,) = share.iter_rows(named=True)
    # Wilson: (p + z^2 / 2n -/+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    z, p, n = 1.959963985, 2 / 3, 30
    middle, reach = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = np.array([middle - reach, middle + reach]) / (1 + z**2 / n)
    assert (row["value"], row["ci_low"], row["ci_high"]) == pytest.approx((p, *expected))


def test_the_outliers_of_the_real_people(real: pl.DataFrame) -> None:
    """Spec, section 3: 109 of 1,380 are removed, 918 controls and 353 patients stay."""
    found = flagged(real)
    assert found["removed"].sum() == 109
    assert found.height > 109
    left = variants(real)["without_outliers"].frame["group"].value_counts()
    assert dict(left.iter_rows()) == {"HC": 918, "MS": 353}
