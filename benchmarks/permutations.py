"""Permutation tests of a family of rank correlations: this project and scipy.stats.permutation_test in one run.

The family is that of study `disability`: 12 scenarios x 10 quantiles x 3 contrasts = 360 columns of 232 scans, with
ties in EDSS. The unit is one permutation of one test. scipy runs fewer of them and is not extrapolated beyond that
unit; its cost per permutation and test does not depend on how many there are, as it works in batches (here of the size
that serves it best: 10 of all columns, 1,000 of one). Three ways to use it: as its documentation does, with the ranks
made once, and with all columns in one call, which is the most that it offers. What this project does besides, the
maximum over the family, is in its time; scipy does not do it. The bootstrap and missing values, which scipy's test
does not know, are measured apart.

Belongs here: the cohort and the cases. Does not belong here: measuring (`measure.py`), tables (`disability.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from relevance_assets.statistics.correlation import spearman_family
from relevance_assets.statistics.partial import partial_spearman_family

__all__ = ["COLUMNS", "SCANS", "Case", "agreement", "cases"]

SCANS, PEOPLE, COLUMNS, PATTERNS, BOOTSTRAPS = 232, 166, 360, 12, 2000
Array = np.ndarray


class Case(NamedTuple):
    name: str
    tests: int
    permutations: int
    call: Callable[[], Any]
    compare: bool  # with the first case: it does permutations alone


def cohort() -> tuple[Array, Array, Array, Array]:
    """Measures, the same with missing rows, EDSS, covariates."""
    random = np.random.default_rng(0)
    edss = random.choice(np.arange(0, 9, 0.5), SCANS)
    x = random.normal(size=(SCANS, COLUMNS)) + random.normal(size=(SCANS, 1)) + 0.05 * edss[:, None]
    missing = x.copy()
    for pattern in range(1, PATTERNS):
        empty = random.choice(SCANS, random.integers(1, 6), replace=False)
        missing[np.ix_(empty, np.arange(pattern, COLUMNS, 3 * PATTERNS))] = np.nan
    age, sex, lesions = random.normal(45, 14, SCANS), random.integers(0, 2, SCANS), random.exponential(5, SCANS)
    return x, missing, edss, np.column_stack([age, sex, lesions])


def unit_ranks(values: Array) -> Array:
    ranks = stats.rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    return ranks / np.sqrt((ranks**2).sum(axis=0))


def scipy_documented(x: Array, y: Array, resamples: int) -> None:
    """As in the documentation of scipy.stats.spearmanr: ranks anew in every permutation."""
    for column in x.T:
        stats.permutation_test(
            (column,),
            lambda values: stats.spearmanr(values, y).statistic,
            permutation_type="pairings",
            n_resamples=resamples,
            rng=np.random.default_rng(0),
        )


def scipy_ranked(x: Array, y: Array, resamples: int, batch: int) -> Array:
    """Ranks made once and a vectorised statistic; x may be one column or, in one call, many. |rho*| of each."""
    of_y = unit_ranks(y)
    found = stats.permutation_test(
        (unit_ranks(x).T,),
        lambda ranks, axis: ranks @ of_y,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=resamples,
        batch=batch,
        axis=-1,
        rng=np.random.default_rng(0),
    )
    return np.abs(found.null_distribution)


def cases(permutations: int) -> list[Case]:
    x, missing, y, z = cohort()
    few = x[:, :3]

    def ours(values: Array, bootstrap: int = 0, covariates: Array | None = None) -> Callable[[], Any]:
        options: dict[str, Any] = {"permutations": permutations, "bootstrap": bootstrap, "seed": 0}
        options["groups"] = [scan % PEOPLE for scan in range(SCANS)]
        if covariates is None:
            return lambda: spearman_family(values, y, **options)
        return lambda: partial_spearman_family(values, y, covariates, **options)

    fewer, boots = max(1, permutations // 10), f"{BOOTSTRAPS:,} bootstraps"
    return [
        Case("this project", COLUMNS, permutations, ours(x), True),
        Case("scipy, all in one call", COLUMNS, fewer, lambda: scipy_ranked(x, y, fewer, 10), True),
        Case("scipy, one column", 1, permutations, lambda: scipy_ranked(few[:, :1], y, permutations, 1000), True),
        Case("scipy, as documented", 3, 200, lambda: scipy_documented(few, y, 200), True),
        Case(f"this project, and {boots}", COLUMNS, permutations, ours(x, BOOTSTRAPS), False),
        Case(f"  with {PATTERNS} patterns of missing rows", COLUMNS, permutations, ours(missing, BOOTSTRAPS), False),
        Case("  partial, with missing rows", COLUMNS, permutations, ours(missing, BOOTSTRAPS, z), False),
    ]


def agreement(permutations: int) -> str:
    """How far p is from scipy's, both by chance: in standard errors of the difference."""
    x, _, y, _ = cohort()
    few, resamples = x[:, :20], 5000
    frame = spearman_family(few, y, permutations=permutations, bootstrap=0, seed=0)
    ours, rho = frame["p_permutation"].to_numpy(), np.abs(frame["value"].to_numpy())
    theirs = (scipy_ranked(few, y, resamples, 100) >= rho - 1e-12).mean(axis=0)
    both = (ours + theirs) / 2
    error = np.sqrt(both * (1 - both) * (1 / permutations + 1 / resamples)) + 1 / resamples
    return f"p of 20 columns against scipy's null distribution: at most {np.max(np.abs(ours - theirs) / error):.1f} SE"
