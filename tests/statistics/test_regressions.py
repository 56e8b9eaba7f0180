"""Linear models with robust errors: against HC3 written out in NumPy, planted truth and published figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from relevance_assets.statistics.people import variants
from relevance_assets.statistics.regressions import regressions, robust_fit

Maker = Callable[..., pl.DataFrame]


@pytest.fixture(scope="module")
def fitted(real: pl.DataFrame) -> pl.DataFrame:
    return regressions(variants(real))


def row_of(frame: pl.DataFrame, **where: Any) -> dict[str, Any]:
    where = {"variant": "all", "recipe": "sound"} | where
    return frame.row(by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in where.items()), named=True)


def hc3(outcome: np.ndarray, design: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates, errors and p: (X'X)^-1 X' diag(e^2 / (1 - h)^2) X (X'X)^-1, t with n - k degrees of freedom."""
    inverse = np.linalg.inv(design.T @ design)
    estimate = inverse @ design.T @ outcome
    rest = outcome - design @ estimate
    leverage = np.array([row @ inverse @ row for row in design])
    spread = sum(np.outer(row, row) * (e / (1 - h)) ** 2 for row, e, h in zip(design, rest, leverage, strict=True))
    error = np.sqrt(np.diag(inverse @ spread @ inverse))
    return estimate, error, 2 * stats.t.sf(np.abs(estimate / error), len(design) - design.shape[1])


def test_robust_errors_are_those_of_the_formula() -> None:
    random = np.random.default_rng(4)
    x, z = random.normal(size=50), random.integers(0, 2, 50).astype(float)
    y = 1 + 2 * x - z + random.normal(size=50) * (1 + np.abs(x))
    found = robust_fit(y, {"x": x, "flat": np.ones(50), "z": z})
    assert list(found) == ["constant", "x", "z"]
    estimate, error, p = hc3(y, np.column_stack([np.ones(50), x, z]))
    reach = stats.t.ppf(0.975, 47) * error
    expected = np.column_stack([estimate, estimate - reach, estimate + reach, p])
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-9)


def test_a_model_that_cannot_be_fitted_has_no_rows() -> None:
    x = np.arange(5.0)
    assert robust_fit(x, {"flat": np.ones(5), "x": x}) == {}
    assert robust_fit(x, {"x": x, "twice": 2 * x}) == {}
    assert robust_fit(x[:2], {"x": x[:2]}) == {}
    assert robust_fit(x[:0], {"x": x[:0]}) == {}


def test_adjusted_effects_are_the_published_ones(fitted: pl.DataFrame) -> None:
    """Spec, section 5, points 4 and 6, to the printed digit."""
    lesions = row_of(fitted, analysis="adjusted_group", outcome="lesion_ratio", term="group: MS")
    assert [round(lesions[k], 1) for k in ("estimate", "ci_low", "ci_high")] == [8.7, 7.1, 10.7]
    age = row_of(fitted, analysis="group_by_age", outcome="lesion_ratio", term="group: MS x age")
    assert f"{age['p']:.0e}" == "8e-08"
    ventricles = row_of(fitted, analysis="adjusted_group", outcome="ventricle_ratio", term="group: MS")
    assert (round(100 * (ventricles["estimate"] - 1)), round(ventricles["p"], 3)) == (-6, 0.012)
    assert {row["n"] for row in (lesions, age, ventricles)} == {1371}
    for stratum, points, p, n in (
        ("MS, no lesion as 0 %", 8.4, 0.005, 380),
        ("MS with lesions", 6.4, 0.029, 362),
        ("MS with 25 px of lesions", 4.4, 0.096, 290),
    ):
        where = {"analysis": "share_by_sex", "outcome": "periventricular_ratio", "term": "sex: male"}
        row = row_of(fitted, stratum=stratum, **where)
        assert (round(row["estimate"], 1), round(row["p"], 3), row["n"]) == (points, p, n)


def test_the_published_quadratic_and_its_wrong_r_squared(fitted: pl.DataFrame) -> None:
    """Spec, section 1: lesions of controls .005 as printed, .018 in truth."""
    where = {"analysis": "age_quadratic", "outcome": "lesion_ratio", "stratum": "HC"}
    wrong = row_of(fitted, recipe="as_published", term="r_squared_as_published", **where)
    assert (round(wrong["estimate"], 3), wrong["p"]) == (0.005, None)
    assert round(row_of(fitted, term="r_squared", **where)["estimate"], 3) == 0.018
    for term in ("constant", "age (z)", "age (z) squared"):
        both = (row_of(fitted, recipe=recipe, term=term, **where) for recipe in ("as_published", "sound"))
        published, sound = (row["estimate"] for row in both)
        assert published == pytest.approx(sound)


def test_every_row_is_counted_by_its_filter(fitted: pl.DataFrame, real: pl.DataFrame) -> None:
    subjects = {name: people.frame for name, people in variants(real).items()}
    for variant, text, n in fitted.select("variant", "filter", "n").unique().iter_rows():
        assert subjects[variant].filter(pl.sql_expr(text)).height == n
    assert not fitted.select("analysis", "recipe", "variant", "stratum", "outcome", "term").is_duplicated().any()
    constants = fitted.filter(pl.col("term") == "constant")
    assert constants["p_corrected"].null_count() == constants.height


def test_a_planted_factor_is_found_and_age_and_sex_are_taken_out(made: Maker) -> None:
    """Patients are older and have 3 times as much at the same age; each year has 2 % more, men have 1.5 times."""
    random = np.random.default_rng(5)
    n = 1200
    patient = np.repeat([0.0, 1.0], n // 2)
    age, sex = random.uniform(20, 40, n) + 15 * patient, random.integers(0, 2, n).astype(float)
    ratio = np.exp(-4 + np.log(3) * patient + 0.02 * age + np.log(1.5) * sex + random.normal(0, 0.5, n))
    subjects = made(n // 2, n // 2, age=age, sex=sex, intracranial_area=np.full(n, 1e5), lesion_area=1e3 * ratio)
    found = regressions({"all": variants(subjects)["all"]})
    for term, truth in (("group: MS", 3.0), ("age", np.exp(0.02)), ("sex: male", 1.5)):
        row = row_of(found, analysis="adjusted_group", outcome="lesion_ratio", term=term)
        assert row["ci_low"] < truth < row["ci_high"]
        assert row["p_corrected"] < 0.001
    assert row_of(found, analysis="group_by_age", outcome="lesion_ratio", term="group: MS x age")["p"] > 0.001
