"""Rank correlations of many variables with one, as one family.

Belongs here: Spearman's rho of a family. Does not belong here: covariates (`partial.py`), the computation itself
(`families.py`), which variables and strata a study looks at.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import polars as pl

from relevance_assets.statistics.families import rank_family

__all__ = ["spearman_family"]


def spearman_family(
    x: np.ndarray,
    y: np.ndarray,
    *,
    permutations: int,
    seed: int,
    confidence: float = 0.95,
    bootstrap: int = 2000,
    names: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> pl.DataFrame:
    """Spearman's rho of every column of `x` with `y`, tested as one family.

    Rho is Pearson's r of mid-ranks. Rows where `x` or `y` is NaN are left out, column by column. The
    permutation p is two-sided, (b + 1) / (B + 1) with b the number of the B permutations of `y` that have
    |rho*| >= |rho| (Phipson & Smyth 2010). It is corrected in two ways: p_corrected is the single-step
    maximum statistic of Westfall & Young (1993), |rho| against the family's greatest |rho*| of the same
    permutation, which keeps the columns' dependence and bounds the chance of any false finding; p_fdr is
    Benjamini & Hochberg (1995) on the permutation p, which bounds the share of false findings. The interval is
    the percentile bootstrap over `groups`.

    The permutation takes rows as exchangeable: repeated scans of a person are not; give one scan per person
    as well to see what that changes.

    Parameters
    ----------
    x : (n, m), NaN where missing.
    y : (n,), NaN where missing.
    permutations, bootstrap : how many of each.
    seed : same seed, same result; it does not depend on the names.
    names : m names; `0`, `1`, ... if not given.
    groups : (n,) people, who are drawn together by the bootstrap; each row its own if not given.

    Returns
    -------
    One row per column of `x`: name, value, ci_low, ci_high, p (asymptotic, t with n - 2 degrees of freedom),
    p_permutation, p_corrected, p_fdr, correction ('max-statistic': how p_corrected was made), n. All but name
    and n are null where fewer than three pairs are left or one of the two does not vary.

    Raises
    ------
    ValueError
        Shapes that do not match.
    """
    return rank_family(
        x,
        y,
        np.zeros((len(y), 0)),
        permutations=permutations,
        seed=seed,
        confidence=confidence,
        bootstrap=bootstrap,
        names=names,
        groups=groups,
    )
