"""Two hundred cohorts without effect: the family-wise error keeps its level, and p values are uniform.

A permutation p is (b + 1) / (B + 1), so without effect it is uniform over the B + 1 steps 1 / (B + 1), ..., 1, and
P(p <= 0.05) is the number of steps up to 0.05 over B + 1: exactly 0.05 for B = 499. Kolmogorov and Smirnov's test is
for continuous variables: p is therefore spread evenly within its step, (b + U) / (B + 1) with U uniform on (0, 1),
which is uniform on (0, 1) exactly if p is uniform over its steps. One column per cohort is tested, as the columns of
a cohort depend on each other. The seed was chosen before looking.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from relevance_assets.statistics.correlation import spearman_family
from relevance_assets.statistics.partial import partial_spearman_family

COHORTS, PEOPLE, COLUMNS, PERMUTATIONS, SEED = 200, 60, 24, 499, 0
SETTINGS: dict[str, Any] = {"permutations": PERMUTATIONS, "bootstrap": 0}
# EDSS of the published cohort's kind: half steps, median 2.5, a quarter at 5 or above
STEPS, SHARES = np.arange(0, 8.5, 0.5), np.array([2, 2, 6, 10, 12, 12, 9, 7, 6, 6, 5, 6, 7, 5, 3, 1, 1]) / 100


def measures(random: np.random.Generator) -> np.ndarray:
    """24 columns that depend on each other as masks of neighbouring quantiles do; a tenth of one column is empty."""
    x = np.cumsum(random.normal(size=(PEOPLE, COLUMNS)), axis=1) + 2 * random.normal(size=(PEOPLE, 1))
    x[random.random(PEOPLE) < 0.1, 5] = np.nan
    return x


def edss(random: np.random.Generator) -> np.ndarray:
    return random.choice(STEPS, PEOPLE, p=SHARES)


def check(family: Callable[[np.random.Generator, int], pl.DataFrame]) -> tuple[int, np.ndarray]:
    """Number of cohorts with any corrected p below 0.05 or at it, and the p of one column per cohort, spread."""
    random = np.random.default_rng(SEED)
    any_found, spread = 0, []
    for cohort in range(COHORTS):
        frame = family(random, cohort)
        assert frame["p_corrected"].null_count() == 0
        any_found += bool((frame["p_corrected"] <= 0.05).any())
        p = frame["p_permutation"][cohort % COLUMNS]
        spread.append(p - random.random() / (PERMUTATIONS + 1))
    return any_found, np.array(spread)


def hold(any_found: int, p: np.ndarray) -> None:
    low, high = stats.binom.interval(0.99, COHORTS, 0.05)
    assert low <= any_found <= high, f"{any_found} of {COHORTS} cohorts; {low:.0f} to {high:.0f} are due"
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_spearman() -> None:
    def family(random: np.random.Generator, cohort: int) -> pl.DataFrame:
        return spearman_family(measures(random), edss(random), seed=cohort, **SETTINGS)

    hold(*check(family))


def test_partial_where_x_depends_on_the_covariates_alone() -> None:
    def family(random: np.random.Generator, cohort: int) -> pl.DataFrame:
        z = covariates(random)
        x = measures(random) + 2 * z @ random.normal(size=(3, COLUMNS))
        return partial_spearman_family(x, edss(random), z, seed=cohort, **SETTINGS)

    hold(*check(family))


def test_partial_where_both_depend_on_a_covariate() -> None:
    """Confounded by lesion load, moderately: without the covariate many cohorts would have a finding.

    More and closer confounders leave more than the level, as rank regression is linear: see `partial.py`.
    """

    def confounded(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        load = random.normal(size=PEOPLE)
        # the person of rank i in what load and chance say has the i-th EDSS
        said = stats.rankdata(load + random.normal(size=PEOPLE)).astype(int) - 1
        return measures(random) + 2 * load[:, None], np.sort(edss(random))[said], load[:, None]

    def family(random: np.random.Generator, cohort: int) -> pl.DataFrame:
        return partial_spearman_family(*confounded(random), seed=cohort, **SETTINGS)

    def without(random: np.random.Generator, cohort: int) -> pl.DataFrame:
        x, y, _ = confounded(random)
        return spearman_family(x, y, seed=cohort, **SETTINGS)

    hold(*check(family))
    assert check(without)[0] > COHORTS / 2


def covariates(random: np.random.Generator) -> np.ndarray:
    """Age and logarithm of the lesion volume, standardised, and sex."""
    return np.stack([random.normal(size=PEOPLE), random.integers(0, 2, PEOPLE), random.normal(size=PEOPLE)], axis=1)
