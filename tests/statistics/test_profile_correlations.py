"""Correlations of a subject table: against scipy, NumPy, simulation and published figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.statistics.lesion_profile import correlation_matrix
from relevance_assets.statistics.people import variants
from relevance_assets.statistics.profile_correlations import KEY_PAIRS, correlations, difference, rank_correlation

Maker = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def correlated(real: pl.DataFrame) -> pl.DataFrame:
    return correlations(variants(real))


def rows_of(frame: pl.DataFrame, **where: Any) -> list[dict[str, Any]]:
    where = {"variant": "all"} | where
    return frame.filter(pl.all_horizontal(pl.col(k) == v for k, v in where.items())).to_dicts()


def test_the_published_matrices_are_there_in_full(correlated: pl.DataFrame, real: pl.DataFrame) -> None:
    """Both groups, both variants; spec: age and ventricles .3188 (380) and .2503 (991); flags of the 21 pairs."""
    for variant, people in variants(real).items():
        for group in ("HC", "MS"):
            rows = rows_of(correlated, analysis="matrix", stratum=group, variant=variant)
            expected = correlation_matrix(people.frame, group)
            assert [row["value"] for row in rows] == expected["r"].to_list()
            assert [row["p"] for row in rows] == expected["p"].to_list()
            keys = rows_of(correlated, analysis="key_pairs", stratum=group, variant=variant)
            assert [(row["x"], row["y"]) for row in keys] == list(KEY_PAIRS)
    ages = [rows_of(correlated, analysis="key_pairs", stratum=group)[0] for group in ("MS", "HC")]
    assert [(round(row["value"], 4), row["n"]) for row in ages] == [(0.3188, 380), (0.2503, 991)]
    for group, flags in (("MS", 9), ("HC", 8)):
        rows = rows_of(correlated, analysis="matrix", stratum=group)
        assert sum(row["p_corrected"] < 0.05 for row in rows) == flags
    burden = {(row["stratum"], row["y"]): row["value"] for row in rows_of(correlated, analysis="age_burden")}
    assert round(burden["HC", "ventricle_ratio"], 3) == 0.241
    assert round(burden["MS male", "lesion_ratio"], 3) == 0.188
    assert len(burden) == 12


def test_every_row_is_counted_by_its_filter(correlated: pl.DataFrame, real: pl.DataFrame) -> None:
    subjects = {name: people.frame for name, people in variants(real).items()}
    for variant, text, n in correlated.select("variant", "filter", "n").unique().iter_rows():
        assert subjects[variant].filter(pl.sql_expr(text)).height == n
    assert not correlated.select("analysis", "recipe", "variant", "stratum", "x", "y", "method").is_duplicated().any()


def test_rho_is_scipys_and_given_others_that_of_residuals_of_ranks() -> None:
    random = np.random.default_rng(8)
    z = random.integers(0, 4, 60).astype(float)
    x, y = z + random.normal(size=60), np.round(z + random.normal(size=60), 0)
    plain, expected = rank_correlation(x, y), stats.spearmanr(x, y)
    assert (plain["value"], plain["p"], plain["n"]) == pytest.approx((expected.statistic, expected.pvalue, 60))
    error = np.sqrt((1 + plain["value"] ** 2 / 2) / 57)
    ends = np.tanh(np.arctanh(plain["value"]) + np.array([-1, 1]) * 1.959963985 * error)
    assert (plain["ci_low"], plain["ci_high"]) == pytest.approx(ends)
    given = rank_correlation(x, y, [z, np.ones(60)])
    design = np.column_stack([np.ones(60), stats.rankdata(z)])
    rest = [stats.rankdata(v) - design @ np.linalg.lstsq(design, stats.rankdata(v), rcond=None)[0] for v in (x, y)]
    r = np.corrcoef(rest)[0, 1]
    t = r * np.sqrt(57 / (1 - r**2))
    assert (given["value"], given["p"]) == pytest.approx((r, 2 * stats.t.sf(abs(t), 57)))
    error = np.sqrt((1 + r**2 / 2) / 56)
    assert given["ci_low"] == pytest.approx(np.tanh(np.arctanh(r) - 1.959963985 * error))


@pytest.mark.parametrize(("rho", "n"), [(0.0, 30), (0.6, 80)])
def test_intervals_hold_the_truth_as_often_as_they_say(rho: float, n: int) -> None:
    """Bivariate normal: Spearman's rho is 6 / pi asin(r / 2); 600 studies."""
    random = np.random.default_rng(9)
    truth = 6 / np.pi * np.arcsin(rho / 2)
    held = 0
    for _ in range(600):
        x = random.normal(size=n)
        row = rank_correlation(x, rho * x + np.sqrt(1 - rho**2) * random.normal(size=n))
        held += row["ci_low"] <= truth <= row["ci_high"]
    assert held / 600 == pytest.approx(0.95, abs=0.03)


def test_differences_of_two_groups() -> None:
    """The same sample against itself: none; swapped groups: the other sign; p is uniform where nothing differs."""
    random = np.random.default_rng(10)
    x, y = random.normal(size=(2, 70))
    a, b = rank_correlation(x, y), rank_correlation(x[:40], x[:40] + y[:40])
    same = difference(a, a)
    assert (same["value"], same["p"], same["n"]) == (0, 1, 140)
    one, other = difference(a, b), difference(b, a)
    assert one["value"] == -other["value"] == b["value"] - a["value"]
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((-other["ci_high"], -other["ci_low"]))
    assert one["p"] == other["p"]
    p = []
    for _ in range(400):
        v = random.normal(size=(4, 50))
        p.append(difference(rank_correlation(v[0], v[1]), rank_correlation(v[2], v[3]))["p"])
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.033)


def test_what_does_not_vary_has_no_correlation() -> None:
    found = rank_correlation(np.ones(8), np.arange(8.0))
    assert (found["value"], found["p"], found["ci_low"], found["n"]) == (None, None, None, 8)
    perfect = rank_correlation(np.arange(8.0), np.arange(8.0) ** 3)
    assert (perfect["value"], perfect["ci_low"]) == (1, None)
    assert difference(found, perfect) == {"n": 16, "n_a": 8, "n_b": 8}
    few = rank_correlation(np.array([1.0, 3, 2]), np.array([1.0, 2, 3]))
    assert (few["value"], few["ci_low"]) == (pytest.approx(0.5), None)
