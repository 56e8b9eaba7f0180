"""Spearman's rho of a family against scipy, exhaustive enumeration and plain loops."""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from relevance_assets.statistics.correlation import spearman_family
from relevance_assets.statistics.resampling import draw_weights


def tied(n: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """EDSS-like steps and variables that depend on them a little, both with ties."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 10, n) / 2
    x = np.round(random.normal(size=(n, m)) + 0.3 * y[:, None] * np.arange(m) / m, 1)
    return x, y


def test_rho_and_asymptotic_p_are_those_of_scipy() -> None:
    x, y = tied(40, 6, 0)
    x[3, 1] = x[7, 1] = x[0, 2] = np.nan
    frame = spearman_family(x, y, permutations=9, bootstrap=10, seed=0, names=list("abcdef"))
    assert frame["name"].to_list() == list("abcdef")
    assert frame["n"].to_list() == [40, 38, 39, 40, 40, 40]
    for column, row in zip(x.T, frame.iter_rows(named=True), strict=True):
        expected = stats.spearmanr(column, y, nan_policy="omit")
        assert row["value"] == pytest.approx(float(expected.statistic), abs=1e-12)
        assert row["p"] == pytest.approx(float(expected.pvalue), rel=1e-9)
        assert row["correction"] == "max-statistic"


def exact_p(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over all permutations of y: p of each column alone, and against the greatest |rho| of the columns."""
    rho = np.array([stats.spearmanr(column, y).statistic for column in x.T])
    all_rho = np.array(
        [
            [np.corrcoef(stats.rankdata(column), stats.rankdata(order))[0, 1] for column in x.T]
            for order in itertools.permutations(y)
        ]
    )
    reached = np.abs(rho) - 1e-9
    return (np.abs(all_rho) >= reached).mean(axis=0), (np.abs(all_rho).max(axis=1)[:, None] >= reached).mean(axis=0)


def test_permutation_p_agrees_with_all_720_permutations_of_six() -> None:
    y = np.array([1.0, 2.0, 2.0, 4.0, 5.0, 6.5])
    x = np.array([[1, 2, 3, 5, 4, 6], [2, 1, 2, 3, 1, 2], [6, 5, 5, 2, 1, 3.0]]).T
    alone, family = exact_p(x, y)
    frame = spearman_family(x, y, permutations=40_000, bootstrap=10, seed=1)
    # four standard errors of a share of 40,000
    for found, expected in ((frame["p_permutation"], alone), (frame["p_corrected"], family)):
        assert np.all(np.abs(found.to_numpy() - expected) < 4 * np.sqrt(expected / 40_000) + 1e-4)


def test_permutation_p_agrees_with_scipy() -> None:
    x, y = tied(6, 1, 3)
    exact = stats.permutation_test(
        (x[:, 0],),
        lambda a: stats.spearmanr(a, y).statistic,
        permutation_type="pairings",
        n_resamples=np.inf,
    )
    found = spearman_family(x, y, permutations=30_000, bootstrap=10, seed=0)["p_permutation"][0]
    size = np.abs(exact.null_distribution) >= abs(exact.statistic) - 1e-12
    assert found == pytest.approx(size.mean(), abs=0.012)


def test_a_permutation_that_gives_rho_itself_counts() -> None:
    # |rho| = 1 is reached by 2 of 3! = 6 orders; without the tolerance rounding would lose some of them
    y = np.array([0.1, 0.2, 0.3])
    frame = spearman_family(y[:, None] * 3, y, permutations=30_000, bootstrap=10, seed=0)
    assert frame["value"][0] == pytest.approx(1)
    assert frame["p"][0] == 0
    assert frame["p_permutation"][0] == pytest.approx(1 / 3, abs=0.012)


def test_p_is_never_zero_and_counts_itself() -> None:
    y = np.arange(30.0)
    frame = spearman_family(y[:, None], y, permutations=999, bootstrap=10, seed=0)
    assert frame["p_permutation"][0] == 1 / 1000
    assert frame["p_corrected"][0] == 1 / 1000


def test_the_maximum_statistic_is_not_less_than_p_and_knows_dependence() -> None:
    x, y = tied(50, 20, 5)
    frame = spearman_family(x, y, permutations=2000, bootstrap=10, seed=0)
    alone, family = frame["p_permutation"].to_numpy(), frame["p_corrected"].to_numpy()
    assert np.all(family >= alone)
    # twenty copies of one column are one test
    same = spearman_family(np.repeat(x[:, :1], 20, axis=1), y, permutations=2000, bootstrap=10, seed=0)
    assert np.array_equal(same["p_permutation"].to_numpy(), same["p_corrected"].to_numpy())


def test_the_family_keeps_its_error_rate_with_missing_values() -> None:
    random = np.random.default_rng(8)
    false = 0
    for study in range(200):
        x, y = random.normal(size=(25, 8)), random.integers(0, 8, 25) / 2
        x += x[:, :1]  # dependent columns
        x[random.random(x.shape) < 0.05] = np.nan
        frame = spearman_family(x, y, permutations=199, bootstrap=1, seed=study)
        false += (frame["p_corrected"] <= 0.05).any()
    assert 1 <= false <= 20, "10 of 200 are due; 20 would be 3.2 standard errors too many"


def test_one_missing_row_hardly_changes_the_permutations() -> None:
    random = np.random.default_rng(6)
    y = random.integers(0, 10, 60) / 2
    column = random.normal(size=60) + 0.15 * y
    x = np.stack([column, column], axis=1)
    x[30, 1] = np.nan
    frame = spearman_family(x, y, permutations=4000, bootstrap=10, seed=0)
    alone, family = frame["p_permutation"].to_numpy(), frame["p_corrected"].to_numpy()
    assert 0.1 < alone.min() < 0.6
    # nearly the same test twice costs nearly nothing; two independent tests would cost 1 - (1 - p)²
    assert family.min() < alone.max() + 0.25 * alone.min() * (1 - alone.min())


def test_fdr_is_that_of_the_books() -> None:
    x, y = tied(40, 12, 2)
    x[:, 4] = 1.0
    frame = spearman_family(x, y, permutations=500, bootstrap=10, seed=0)
    known = frame.filter(frame["value"].is_not_null())
    p = known["p_permutation"].to_numpy()
    order = np.argsort(p)
    expected, least = np.empty(len(p)), 1.0
    for place in range(len(p) - 1, -1, -1):
        least = min(least, p[order[place]] * len(p) / (place + 1))
        expected[order[place]] = least
    assert known["p_fdr"].to_numpy() == pytest.approx(expected)
    assert set(known["correction"]) == {"max-statistic"}
    assert known.height == 11
    assert np.all(known["p_fdr"].to_numpy() >= p)


def test_what_does_not_vary_or_is_too_short_is_null_with_its_n() -> None:
    x, y = tied(12, 5, 0)
    x[:, 1] = 3.3
    x[2:, 2] = np.nan
    x[:, 3] = np.nan
    frame = spearman_family(x, y, permutations=20, bootstrap=20, seed=0)
    assert frame["n"].to_list() == [12, 12, 2, 0, 12]
    for row in frame[1:4].iter_rows(named=True):
        assert {k for k, v in row.items() if v is not None} == {"name", "n"}
    constant = spearman_family(x, np.ones(12), permutations=20, bootstrap=20, seed=0)
    assert constant["value"].null_count() == 5
    empty = spearman_family(np.empty((5, 0)), np.arange(5.0), permutations=20, bootstrap=20, seed=0)
    assert empty.height == 0


def test_missing_y_drops_the_row_everywhere() -> None:
    x, y = tied(30, 3, 0)
    y[[2, 5]] = np.nan
    kept = np.isfinite(y)
    a = spearman_family(x, y, permutations=100, bootstrap=100, seed=0)
    b = spearman_family(x[kept], y[kept], permutations=100, bootstrap=100, seed=0)
    assert a["n"].to_list() == [28] * 3
    assert a["value"].to_numpy() == pytest.approx(b["value"].to_numpy())


def test_the_interval_is_the_percentile_bootstrap_over_people() -> None:
    x, y = tied(40, 2, 4)
    people = [i // 2 for i in range(40)]
    frame = spearman_family(x, y, permutations=9, bootstrap=3000, seed=0, groups=people, confidence=0.9)
    random = np.random.default_rng(99)
    for column, row in zip(x.T, frame.iter_rows(named=True), strict=True):
        drawn = []
        for _ in range(1500):
            chosen = random.integers(0, 20, 20)
            rows = np.concatenate([2 * chosen, 2 * chosen + 1])
            drawn.append(stats.spearmanr(column[rows], y[rows]).statistic)
        assert [row["ci_low"], row["ci_high"]] == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.03)


def test_same_seed_same_bits_and_order_of_columns_does_not_matter() -> None:
    x, y = tied(30, 5, 1)
    x[4, 2] = np.nan
    a = spearman_family(x, y, permutations=300, bootstrap=200, seed=7)
    assert a.equals(spearman_family(x, y, permutations=300, bootstrap=200, seed=7))
    assert not a.equals(spearman_family(x, y, permutations=300, bootstrap=200, seed=8))
    turned = spearman_family(x[:, ::-1], y, permutations=300, bootstrap=200, seed=7)[::-1]
    assert turned.drop("name", "value").equals(a.drop("name", "value"))


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match="y has 4 rows"):
        spearman_family(np.zeros((5, 2)), np.zeros(4), permutations=1, seed=0)


def test_every_resample_has_the_rho_of_its_rows() -> None:
    x, y = tied(25, 3, 6)
    x[:, 2] = np.random.default_rng(0).normal(size=25)  # no ties
    frame = spearman_family(x, y, permutations=1, bootstrap=40, seed=5, confidence=0.9)
    weights = draw_weights(None, 25, 40, np.random.default_rng(np.random.SeedSequence(5).spawn(2)[0]))
    for column, row in zip(x.T, frame.iter_rows(named=True), strict=True):
        drawn = []
        for count in weights.astype(int):
            rows = np.repeat(np.arange(25), count)
            drawn.append(stats.spearmanr(column[rows], y[rows]).statistic)
        assert [row["ci_low"], row["ci_high"]] == pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=1e-12)


def whole_family() -> tuple[np.ndarray, np.ndarray]:
    """12 scenarios x 10 quantiles x 3 contrasts of 232 scans; empty masks leave 12 patterns of missing rows."""
    random = np.random.default_rng(0)
    y = random.choice(np.arange(0, 9, 0.5), 232)
    x = random.normal(size=(232, 360)) + random.normal(size=(232, 1)) + 0.1 * y[:, None]
    for pattern in range(1, 12):
        missing = random.choice(232, random.integers(1, 6), replace=False)
        x[np.ix_(missing, np.arange(pattern, 360, 36))] = np.nan
    return x, y


def test_the_family_of_the_study_takes_seconds() -> None:
    x, y = whole_family()
    start = time.process_time()
    frame = spearman_family(x, y, permutations=20_000, bootstrap=2000, seed=0, groups=[i % 166 for i in range(232)])
    assert time.process_time() - start < 10
    assert frame["p_fdr"].null_count() == 0


def test_twenty_thousand_permutations_of_the_whole_family_take_seconds() -> None:
    x, y = tied(232, 120, 0)
    start = time.process_time()
    spearman_family(x, y, permutations=20_000, bootstrap=2000, seed=0)
    assert time.process_time() - start < 20
