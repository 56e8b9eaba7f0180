"""Centred log-ratios: by hand, by their invariances, with planted shares."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.statistics.compositions import (
    DELTAS,
    centred_log_ratio,
    composition_comparisons,
    composition_correlations,
)
from relevance_assets.statistics.groups import draws
from relevance_assets.statistics.people import variants

Maker = Callable[..., pl.DataFrame]


def test_centred_log_ratios_by_hand() -> None:
    """Shares 1/7, 2/7, 4/7: the geometric mean is 2/7. One zero of 0.01: the rest shrinks by 0.99."""
    found = centred_log_ratio(np.array([[1, 2, 4], [0, 50, 50.0], [0, 0, 3]]), 0.01)
    np.testing.assert_allclose(found[0], [-np.log(2), 0, np.log(2)], atol=1e-12)
    shares = np.array([0.01, 0.495, 0.495])
    np.testing.assert_allclose(found[1], np.log(shares / shares.prod() ** (1 / 3)))
    np.testing.assert_allclose(found[2], np.log(np.array([0.01, 0.01, 0.98])) - np.log(0.98e-4) / 3)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-12)


def test_ratios_that_are_known_stay_and_the_unit_does_not_matter() -> None:
    parts = np.random.default_rng(0).integers(0, 5, (50, 3)) + np.array([1, 0, 0])
    found = centred_log_ratio(parts, 0.005)
    both = (parts[:, 1] > 0) & (parts[:, 2] > 0)
    np.testing.assert_allclose((found[:, 1] - found[:, 2])[both], np.log(parts[both, 1] / parts[both, 2]))
    np.testing.assert_allclose(found, centred_log_ratio(parts * 0.81, 0.005))


@pytest.mark.parametrize(
    ("parts", "delta", "message"),
    [
        ([[0, 0, 0]], 0.01, "leave such rows out"),
        ([[1, -1, 2]], 0.01, "not be negative"),
        ([[1, 0, 2]], 0.0, "small positive"),
        ([[1, 0, 0]], 0.5, "small positive"),
    ],
)
def test_what_is_no_composition_is_an_error(parts: list[list[float]], delta: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        centred_log_ratio(np.array(parts), delta)


def test_a_planted_shift_is_found_and_who_has_no_lesion_is_left_out(made: Maker) -> None:
    """With age the periventricular zone grows, the two others stay as they are to each other."""
    random = np.random.default_rng(6)
    n = 300
    age = random.uniform(20, 60, n)
    logs = random.normal(0, 0.3, (n, 3)) + np.column_stack([0.05 * age, np.zeros(n), np.zeros(n)])
    areas = np.exp(logs) * 50
    areas[:20] = 0
    names = ("periventricular_area", "paraventricular_area", "juxtacortical_area")
    columns = {name: areas[:, i] for i, name in enumerate(names)} | {"lesion_area": areas.sum(axis=1), "age": age}
    people = variants(made(0, n, **columns))
    found = composition_correlations({"all": people["all"]})
    assert found["n"].unique().to_list() == [n - 20]
    assert found.height == 3 * 2 * len(DELTAS)
    rows = {row["y"]: row for row in found.iter_rows(named=True) if row["method"] == "spearman"}
    clr = logs[20:] - logs[20:].mean(axis=1, keepdims=True)
    for i, zone in enumerate(("periventricular", "paraventricular", "juxtacortical")):
        assert rows[f"clr_{zone}"]["value"] == pytest.approx(stats.spearmanr(age[20:], clr[:, i]).statistic)
    assert composition_comparisons({"all": people["all"]}, draws(9, 0))["stratum"].unique().to_list() == ["MS"]


def test_groups_are_compared_in_the_log_ratios(real: pl.DataFrame) -> None:
    """Mann-Whitney of the ratios computed apart; the numbers of people are those of the spec (159 and 18 without)."""
    people = variants(real)
    found = composition_comparisons({"all": people["all"]}, draws(100, 0))
    row = found.row(
        by_predicate=(pl.col("analysis") == "composition_of_groups_zeros_0.005")
        & (pl.col("measure") == "clr_juxtacortical")
        & (pl.col("test") == "mann_whitney"),
        named=True,
    )
    assert (row["n_a"], row["n_b"]) == (999 - 159, 381 - 18)
    assert people["all"].frame.filter(pl.sql_expr(row["filter"])).height == row["n_a"] + row["n_b"]
    values = []
    for group in ("HC", "MS"):
        part = real.filter((pl.col("group") == group) & (pl.col("lesion_area") > 0))
        share = part.select(pl.col("^(peri|para|juxta).*_area$") / pl.col("lesion_area")).to_numpy()
        share = np.where(share == 0, 0.005, share * (1 - 0.005 * (share == 0).sum(axis=1, keepdims=True)))
        values.append(np.log(share[:, 2] / stats.gmean(share, axis=1)).round(9))
    expected = stats.mannwhitneyu(values[1], values[0])
    assert row["statistic"] == pytest.approx(expected.statistic, abs=20)  # rounding breaks or makes a tie here or there
    assert row["effect"] == pytest.approx(np.sign(values[1][:, None] - values[0]).mean(), abs=1e-4)
