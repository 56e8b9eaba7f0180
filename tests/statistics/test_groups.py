"""Two groups compared: tests against counting and resamples written out; published figures to the printed digit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.statistics.groups import draws, group_comparisons, published_test, sound_tests
from relevance_assets.statistics.people import variants

Maker = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def compared(real: pl.DataFrame) -> pl.DataFrame:
    return group_comparisons(variants(real), draws(2000, 0))


def row_of(frame: pl.DataFrame, **where: Any) -> dict[str, Any]:
    where = {"variant": "all", "stratum": "all"} | where
    return frame.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)


# ------------------------------------------------------------------------------------------------------- as published
def test_published_tests_of_the_groups(compared: pl.DataFrame) -> None:
    """Spec, section 3, headlines and Table 1."""
    row = row_of(compared, analysis="groups_version_1", measure="lesion_ratio")
    assert (row["statistic"], round(row["effect"], 4), row["test"]) == (314758, 0.5067, "mann_whitney")
    assert f"{row['p']:.1e}" == "4.9e-79"
    assert (row["n_a"], row["n_b"], row["p_corrected"]) == (999, 381, None)
    for zone, r, p in (("para", 0.816, "6.9e-202"), ("juxta", 0.835, "2.4e-211"), ("peri", None, "1.5e-79")):
        name = {"peri": "periventricular", "para": "paraventricular", "juxta": "juxtacortical"}[zone]
        row = row_of(compared, analysis="groups_version_1", measure=f"{name}_ratio")
        assert f"{row['p']:.1e}" == p
        assert r is None or round(row["effect"], 3) == r
        # 1 - p / 2 rounds to 1
        assert row_of(compared, analysis="groups_version_2", measure=f"{name}_ratio")["effect"] is None
    ages = [row_of(compared, analysis="table_1", measure="age", stratum=s) for s in ("all", "male", "female")]
    assert [(row["n_a"], row["n_b"]) for row in ages] == [(991, 380), (323, 108), (668, 272)]
    assert [f"{row['p']:.2g}" for row in ages] == ["2.2e-05", "0.14", "3.6e-05"]
    assert round(ages[1]["p"], 4) == 0.1425
    for variant, sex, head, ventricles in (("all", 0.1420, 0.1250, 0.3269), ("without_outliers", 0.2507, 0.038, 0.002)):
        found = [
            row_of(compared, analysis="table_1", measure=name, variant=variant)["p"]
            for name in ("sex", "intracranial_area", "ventricle_ratio")
        ]
        assert np.allclose(found, (sex, head, ventricles), atol=0.0005)
    assert round(row_of(compared, analysis="groups_version_1", measure="ventricle_ratio")["p"], 4) == 0.0062


@pytest.mark.parametrize(
    ("zone", "u", "p", "r"),
    [
        ("periventricular", 16943.5, 0.0230, 0.116),
        ("paraventricular", 15119, 0.697, 0.020),
        ("juxtacortical", 14010, 0.449, 0.039),
    ],
)
def test_published_tests_of_the_sexes(compared: pl.DataFrame, zone: str, u: float, p: float, r: float) -> None:
    """Spec, section 3, Table 3: all 381 patients, who has no lesion with 0 %."""
    for analysis in ("table_3", "sexes_version_1"):
        row = row_of(compared, analysis=analysis, measure=f"{zone}_ratio", stratum="MS", test="mann_whitney")
        assert (row["statistic"], round(row["effect"], 3), row["n_a"], row["n_b"]) == (u, r, 273, 108)
        assert row["p"] == pytest.approx(p, abs=0.0005)
    assert row["p_corrected"] == pytest.approx(min(1, 6 * row["p"]))
    assert row["correction"] == "bonferroni over 6, as published"
    if zone == "periventricular":
        row = row_of(compared, analysis="table_3", measure=f"{zone}_ratio", stratum="MS", test="student_t")
        assert round(row["p"], 4) == 0.0179


def test_the_gate_and_both_forms_of_r() -> None:
    """Normal quantiles are normal; exponential ones are not. z of p from the tail, or from 1 - p / 2."""
    normal = stats.norm.ppf((np.arange(40) + 0.5) / 40)
    skewed = stats.expon.ppf((np.arange(40) + 0.5) / 40)
    row = published_test(normal, normal + 1, 1)
    assert row is not None
    assert row["test"] == "student_t"
    pooled = np.sqrt((normal.var(ddof=1) + normal.var(ddof=1)) / 2)
    assert row["effect"] == pytest.approx(1 / pooled)
    assert row["statistic"] == pytest.approx(1 / (pooled * np.sqrt(2 / 40)))
    for version in (1, 2):
        row = published_test(skewed, skewed + 0.5, version)
        assert row is not None
        assert row["test"] == "mann_whitney"
        assert row["effect"] == pytest.approx(stats.norm.isf(row["p"] / 2) / np.sqrt(80), rel=1e-6)
    apart = np.arange(400.0), np.arange(400.0) + 1000
    first, second = (published_test(a * a, b * b, v) for v in (1, 2) for a, b in [apart])
    assert first is not None
    assert second is not None
    assert np.isfinite(first["effect"])
    assert np.isinf(second["effect"])
    assert published_test(normal[:2], normal, 1) is None


def test_of_p_zero_the_forms_give_infinity_and_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = stats.mannwhitneyu([1.0, 2, 3], [4.0, 5, 6])
    monkeypatch.setattr(stats, "mannwhitneyu", lambda *_, **__: type(found)(9.0, 0.0))
    a, b = np.array([1.0, 1, 1, 1, 9, 90]), np.array([4.0, 4, 4, 4, 5, 60])
    rows = [published_test(a, b, version) for version in (1, 2)]
    assert [row["effect"] for row in rows if row] == [np.inf, 0.0]


def test_kurtosis_counts_in_version_2_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "kurtosis", lambda _: 8.0)
    values = stats.norm.ppf((np.arange(30) + 0.5) / 30)
    found = [published_test(values, values + 1, version) for version in (1, 2)]
    assert [row["test"] for row in found if row] == ["student_t", "mann_whitney"]


# -------------------------------------------------------------------------------------------------------------- sound
def test_rank_biserial_and_its_published_oracle(compared: pl.DataFrame) -> None:
    """Spec, section 3: rank-biserial .654 [.60, .71]; without those who have no lesion the sexes' p is .075."""
    row = row_of(compared, analysis="groups", measure="lesion_ratio", test="mann_whitney")
    assert round(row["effect"], 3) == 0.654
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((0.60, 0.71), abs=0.01)
    d = row_of(compared, analysis="groups", measure="lesion_ratio", test="welch_t")
    assert d["effect"] == pytest.approx(1.07, abs=0.01)
    row = row_of(compared, analysis="sexes", measure="periventricular_ratio", stratum="MS", test="mann_whitney")
    assert (row["n_a"] + row["n_b"], round(row["p"], 3)) == (363, 0.075)


def test_every_row_is_counted_by_its_filter(compared: pl.DataFrame, real: pl.DataFrame) -> None:
    subjects = {name: people.frame for name, people in variants(real).items()}
    for variant, text, n_a, n_b in compared.select("variant", "filter", "n_a", "n_b").unique().iter_rows():
        assert subjects[variant].filter(pl.sql_expr(text)).height == n_a + n_b
    key = ["analysis", "recipe", "variant", "measure", "stratum", "test"]
    assert not compared.select(key).is_duplicated().any()
    sound = compared.filter(pl.col("recipe") == "sound")
    assert sound["p_corrected"].null_count() == sound["p"].null_count() == 0
    assert (sound["p_corrected"] >= sound["p_fdr"]).all()


def test_effects_are_those_of_counted_pairs_and_their_intervals_of_resamples_written_out() -> None:
    """Ties within and across; every resample repeated person by person."""
    random = np.random.default_rng(3)
    a, b = random.integers(0, 6, 23).astype(float), random.integers(1, 8, 11).astype(float)
    draw = draws(300, 7)
    ranks, means = sound_tests(a, b, draw)

    def biserial(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sign(y[:, None] - x).mean())

    def hedges(x: np.ndarray, y: np.ndarray) -> float:
        free = x.size + y.size - 2
        sd = np.sqrt(((x.size - 1) * x.var(ddof=1) + (y.size - 1) * y.var(ddof=1)) / free)
        return float((y.mean() - x.mean()) / sd * (1 - 3 / (4 * free - 1)))

    assert ranks["effect"] == pytest.approx(biserial(a, b))
    assert means["effect"] == pytest.approx(hedges(a, b))
    of_a, of_b = (draw(n, side).astype(int) for n, side in ((23, 0), (11, 1)))
    for row, measure in ((ranks, biserial), (means, hedges)):
        values = [measure(np.repeat(a, i), np.repeat(b, j)) for i, j in zip(of_a, of_b, strict=True)]
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(np.quantile(values, (0.025, 0.975)), abs=1e-5)
    welch = (b.mean() - a.mean()) / np.sqrt(a.var(ddof=1) / 23 + b.var(ddof=1) / 11)
    assert means["statistic"] == pytest.approx(welch)


def test_weights_are_draws_with_replacement_whatever_was_drawn_before() -> None:
    draw = draws(4000, 5)
    draw(3, 1)
    weights = draw(9, 0)
    assert np.array_equal(weights, draws(4000, 5)(9, 0))
    assert not np.array_equal(weights, draw(9, 1))
    assert (weights.sum(axis=1) == 9).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(9), abs=0.07)
    assert weights.var() == pytest.approx(8 / 9, abs=0.03)  # binomial, n = 9, p = 1 / 9


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Two normal groups 0.5 SD apart: P(b > a) = Phi(0.5 / sqrt 2); 60 and 40 people, 300 studies."""
    random = np.random.default_rng(11)
    truth = 2 * stats.norm.cdf(0.5 / np.sqrt(2)) - 1, 0.5
    draw = draws(400, 0)
    held = np.zeros(2)
    for _ in range(300):
        rows = sound_tests(random.normal(size=60), random.normal(0.5, 1, 40), draw)
        held += [row["ci_low"] <= true <= row["ci_high"] for row, true in zip(rows, truth, strict=True)]
    assert (np.abs(held / 300 - 0.95) < 0.04).all()  # three standard errors


def test_few_people_and_values_that_do_not_vary() -> None:
    draw = draws(50, 0)
    (row,) = sound_tests(np.array([1.0]), np.array([2.0]), draw)
    assert (row["effect"], row["p"], "ci_low" in row) == (1.0, 1.0, False)
    ranks, means = sound_tests(np.zeros(6), np.zeros(7), draw)
    assert (ranks["effect"], ranks["ci_low"], ranks["ci_high"], ranks["p"]) == (0, 0, 0, 1)
    assert np.isnan(means["effect"])
    assert (means["ci_low"], means["ci_high"]) == (None, None)


def test_a_planted_difference_is_found(made: Maker) -> None:
    random = np.random.default_rng(0)
    subjects = made(80, 60, ventricle_area=np.concatenate([random.normal(500, 50, 80), random.normal(560, 50, 60)]))
    found = group_comparisons(variants(subjects), draws(500, 0))
    row = row_of(found, analysis="groups", measure="ventricle_area", test="welch_t")
    assert row["p_corrected"] < 0.001
    assert row["ci_low"] < 1.2 < row["ci_high"]


def test_without_a_difference_one_in_twenty_is_called_one() -> None:
    """1,000 pairs of skewed groups of one law: binomial, standard error 0.7 %."""
    random = np.random.default_rng(2)
    draw = draws(1, 0)
    p = np.array(
        [[row["p"] for row in sound_tests(random.gamma(2, 1, 40), random.gamma(2, 1, 25), draw)] for _ in range(1000)]
    )
    assert (np.abs((p <= 0.05).mean(axis=0) - 0.05) < 0.021).all()


def test_the_sexes_of_the_groups_by_hand(made: Maker) -> None:
    """HC 30 women 10 men, MS 15 women 15 men: odds ratio 3, chi-squared 70 (30 15 - 10 15)^2 / (40 30 45 25)."""
    found = group_comparisons(
        variants(made(40, 30, sex=[0.0] * 30 + [1.0] * 10 + [0.0] * 15 + [1.0] * 15)), draws(9, 0)
    )
    row = row_of(found, analysis="sex_of_groups")
    assert row["effect"] == pytest.approx(3)
    assert row["statistic"] == pytest.approx(70 * 300**2 / (40 * 30 * 45 * 25))
    error = np.sqrt(1 / 30 + 1 / 10 + 2 / 15)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(3 * np.exp(np.array([-1, 1]) * 1.959964 * error))
    yates = row_of(found, analysis="table_1", measure="sex")
    assert yates["statistic"] == pytest.approx(70 * (300 - 35) ** 2 / (40 * 30 * 45 * 25))
