"""Partial Spearman correlation of a family against closed forms, plain regressions, enumeration and plain loops."""

import itertools
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from relevance_assets.statistics.correlation import spearman_family
from relevance_assets.statistics.partial import partial_spearman_family
from relevance_assets.statistics.resampling import draw_weights

FEW: dict[str, Any] = {"permutations": 9, "bootstrap": 10, "seed": 0}


def cohort(n: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variables and EDSS-like steps that both depend on age, sex and lesion volume, with ties."""
    random = np.random.default_rng(seed)
    z = np.stack([random.normal(45, 14, n).round(), random.integers(0, 2, n), random.exponential(5, n)], axis=1)
    y = np.clip(np.round(0.05 * z[:, 0] + 0.2 * z[:, 2] + random.normal(size=n)), 0, 9) / 2
    x = random.normal(size=(n, m)) + 0.03 * z[:, :1] + 0.3 * z[:, 1:2] + 0.2 * y[:, None]
    x[:, 0] = np.round(x[:, 0])
    return x, y, z


def residuals(values: np.ndarray, z: np.ndarray) -> np.ndarray:
    """What ordinary least squares on the ranks of z leaves of the ranks of values."""
    design = np.column_stack([np.ones(len(values)), *(stats.rankdata(column) for column in z.T)])
    ranks = stats.rankdata(values)
    return ranks - design @ np.linalg.lstsq(design, ranks, rcond=None)[0]


def test_value_is_pearsons_r_of_residuals_and_p_that_of_the_regression_slope() -> None:
    x, y, z = cohort(50, 4, 0)
    x[[3, 9], 1] = np.nan
    z[5, 2] = y[11] = np.nan
    frame = partial_spearman_family(x, y, z, names=list("abcd"), **FEW)
    assert frame["name"].to_list() == list("abcd")
    assert frame["n"].to_list() == [48, 46, 48, 48]
    for column, row in zip(x.T, frame.iter_rows(named=True), strict=True):
        kept = np.isfinite(column) & np.isfinite(y) & np.isfinite(z).all(axis=1)
        a, b, c = column[kept], y[kept], z[kept]
        assert row["value"] == pytest.approx(stats.pearsonr(residuals(a, c), residuals(b, c)).statistic, abs=1e-12)
        ranks = np.column_stack([stats.rankdata(a), *(stats.rankdata(covariate) for covariate in c.T)])
        slope = sm.OLS(stats.rankdata(b), sm.add_constant(ranks)).fit()
        assert row["p"] == pytest.approx(slope.pvalues[1], rel=1e-8)


def test_with_one_covariate_it_is_the_formula_of_three_rhos() -> None:
    x, y, z = cohort(40, 3, 1)
    frame = partial_spearman_family(x, y, z[:, :1], **FEW)
    yz = stats.spearmanr(y, z[:, 0]).statistic
    for column, value in zip(x.T, frame["value"], strict=True):
        xy, xz = stats.spearmanr(column, y).statistic, stats.spearmanr(column, z[:, 0]).statistic
        assert value == pytest.approx((xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2)), abs=1e-12)


def test_without_covariates_or_with_constant_ones_it_is_spearman() -> None:
    x, y, _ = cohort(30, 4, 2)
    x[4, 1] = np.nan
    plain = spearman_family(x, y, permutations=200, bootstrap=100, seed=4)
    for z in (np.empty((30, 0)), np.ones((30, 2))):
        assert partial_spearman_family(x, y, z, permutations=200, bootstrap=100, seed=4).equals(plain)


def test_collinear_covariates_count_once() -> None:
    x, y, z = cohort(40, 3, 3)
    twice = np.column_stack([z, 2 * z[:, 0] + 1, np.full(40, 7.0), 1 - z[:, 1]])
    a = partial_spearman_family(x, y, z, permutations=300, bootstrap=200, seed=1)
    b = partial_spearman_family(x, y, twice, permutations=300, bootstrap=200, seed=1)
    for name in ("value", "ci_low", "ci_high", "p", "p_permutation", "p_corrected", "p_fdr"):
        assert a[name].to_numpy() == pytest.approx(b[name].to_numpy(), abs=1e-9), name


def test_freedman_lane_agrees_with_all_720_permutations_of_six() -> None:
    random = np.random.default_rng(1)
    y, z = np.array([1.0, 2.0, 2.0, 4.0, 5.0, 6.5]), np.array([[3.0, 1.0, 2.0, 6.0, 5.0, 4.0]]).T
    x = random.normal(size=(6, 3)) + np.array([0, 0.3, 0.6]) * y[:, None]
    design = np.column_stack([np.ones(6), stats.rankdata(z[:, 0])])
    of_y, of_x = residuals(y, z), np.stack([residuals(column, z) for column in x.T], axis=1)
    fitted = stats.rankdata(y) - of_y

    def correlations(values: np.ndarray) -> np.ndarray:
        left = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
        return np.array([np.corrcoef(left, column)[0, 1] for column in of_x.T])

    found = np.abs(correlations(fitted + of_y)) - 1e-9
    every = np.abs([correlations(fitted + np.array(order)) for order in itertools.permutations(of_y)])
    alone, family = (every >= found).mean(axis=0), (every.max(axis=1)[:, None] >= found).mean(axis=0)
    frame = partial_spearman_family(x, y, z, permutations=40_000, bootstrap=1, seed=1)
    for got, expected in ((frame["p_permutation"], alone), (frame["p_corrected"], family)):
        assert np.all(np.abs(got.to_numpy() - expected) < 4 * np.sqrt(expected / 40_000) + 1e-4)


def test_a_permutation_that_the_covariates_explain_counts_against_the_finding() -> None:
    """y's residuals are a permutation of the covariate: two of 24 orders leave nothing to correlate."""
    z, y = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([2.0, 4.0, 1.0, 3.0])
    x = np.array([[1.0, 4.0, 3.0, 2.0]]).T
    of_y, of_x = residuals(y, z), residuals(x[:, 0], z)
    found = abs(np.corrcoef(of_x, of_y)[0, 1])
    assert 0.3 < found < 0.999
    reached = explained = 0
    for order in itertools.permutations(of_y):
        left = residuals_of_line(np.array(order), z[:, 0])
        if np.abs(left).max() < 1e-9:
            explained += 1
        elif abs(np.corrcoef(left, of_x)[0, 1]) >= found - 1e-9:
            reached += 1
    assert explained == 2
    frame = partial_spearman_family(x, y, z, permutations=40_000, bootstrap=1, seed=0)
    assert frame["p_permutation"][0] == pytest.approx((reached + explained) / 24, abs=0.01)


def residuals_of_line(values: np.ndarray, z: np.ndarray) -> np.ndarray:
    slope, intercept = np.polyfit(z, values, 1)
    return values - slope * z - intercept


def test_every_resample_ranks_and_regresses_anew() -> None:
    x, y, z = cohort(30, 3, 5)
    x[7, 2] = np.nan
    people = [i // 2 for i in range(30)]
    frame = partial_spearman_family(x, y, z, permutations=1, bootstrap=60, seed=5, groups=people, confidence=0.8)
    weights = draw_weights(people, 30, 60, np.random.default_rng(np.random.SeedSequence(5).spawn(2)[0]))
    for column, row in zip(x.T, frame.iter_rows(named=True), strict=True):
        drawn = []
        for count in weights.astype(int):
            rows = [i for i in np.repeat(np.arange(30), count) if np.isfinite(column[i])]
            drawn.append(np.corrcoef(residuals(column[rows], z[rows]), residuals(y[rows], z[rows]))[0, 1])
        assert [row["ci_low"], row["ci_high"]] == pytest.approx(np.quantile(drawn, [0.1, 0.9]), abs=1e-10)


def test_a_resample_without_one_sex_still_counts() -> None:
    x, y, z = cohort(12, 1, 6)
    z[:, 1] = np.arange(12) == 0  # a third of the resamples has nobody of this sex
    frame = partial_spearman_family(x, y, z, permutations=1, bootstrap=200, seed=0)
    assert -1 <= frame["ci_low"][0] < frame["ci_high"][0] <= 1


def test_what_the_covariates_explain_altogether_is_null_with_its_n() -> None:
    x, y, z = cohort(20, 6, 7)
    x[:, 1] = np.exp(z[:, 0])  # the same ranks as age
    x[:, 2] = 4.0
    x[5:, 3] = np.nan  # 5 rows, 3 covariates: no degree of freedom
    x[:, 4] = np.nan
    frame = partial_spearman_family(x, y, z, **FEW)
    assert frame["n"].to_list() == [20, 20, 20, 5, 0, 20]
    assert frame["value"].is_null().to_list() == [False, True, True, True, True, False]
    for row in frame[1:5].iter_rows(named=True):
        assert {k for k, v in row.items() if v is not None} == {"name", "n"}
    assert partial_spearman_family(x, np.log1p(z[:, 2]), z, **FEW)["value"].null_count() == 6
    assert partial_spearman_family(x[:, :1], y, np.full((20, 1), np.nan), **FEW)["n"].to_list() == [0]
    x[6:, 3] = 1.0  # 20 rows again; 6 rows and 3 covariates leave one degree of freedom
    few = partial_spearman_family(x[:6, [0]], y[:6], z[:6], **FEW)
    r = few["value"][0]
    assert few["p"][0] == pytest.approx(2 * stats.t.sf(abs(r) / np.sqrt(1 - r**2), 1))


def test_a_confounder_is_taken_out_and_an_effect_of_its_own_stays() -> None:
    random = np.random.default_rng(8)
    load, own = random.normal(0, 5, 150), random.normal(size=150)
    y = np.round(load + 2 * own) / 2
    x = np.stack([load + random.normal(size=150), own + 0.5 * random.normal(size=150)], axis=1)
    settings: dict[str, Any] = {"permutations": 999, "bootstrap": 200, "seed": 0}
    assert (spearman_family(x, y, **settings)["p_corrected"] < 0.05).all()
    confounded, real = partial_spearman_family(x, y, load[:, None], **settings).iter_rows(named=True)
    # near 0 and not 0 on average: ranks of variables that depend linearly do so only nearly
    assert abs(confounded["value"]) < 3 / np.sqrt(150)
    assert real["value"] > 0.5
    assert real["p_corrected"] == 0.001


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match="covariates 4"):
        partial_spearman_family(np.zeros((5, 2)), np.zeros(5), np.zeros((4, 1)), permutations=1, seed=0)
    with pytest.raises(ValueError, match="rows and columns"):
        partial_spearman_family(np.zeros((5, 2)), np.zeros(5), np.zeros(5), permutations=1, seed=0)
