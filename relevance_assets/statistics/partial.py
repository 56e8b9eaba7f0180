"""Rank correlations of many variables with one, given others: is there more than age, sex and lesion load?

Belongs here: the partial Spearman correlation of a family. Does not belong here: the computation itself
(`families.py`), which covariates a study takes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import polars as pl

from relevance_assets.statistics.families import rank_family

__all__ = ["partial_spearman_family"]


def partial_spearman_family(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    *,
    permutations: int,
    seed: int,
    confidence: float = 0.95,
    bootstrap: int = 2000,
    names: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> pl.DataFrame:
    """Partial Spearman correlation of every column of `x` with `y` given the covariates `z`, as one family.

    Pearson's r between what is left of the mid-ranks of `x` and of `y` after linear regression on the mid-ranks
    of the covariates and an intercept. Rows where `x`, `y` or a covariate is NaN are left out, column by column.
    The permutation is that of Freedman & Lane (1983): the residuals of y's ranks are permuted, added to the
    fit, and regressed again; x's residuals stay. Corrections and interval are those of `spearman_family`; the
    covariates are ranked and regressed out anew in every resample.

    Two limits. With permuted residuals p is exact only asymptotically. And only what depends linearly on the
    covariates' ranks is taken out: where x and y both follow the same covariates closely, some correlation stays
    although x says nothing more of y. Measured with 60 people and no effect: 5 % of p at or below 0.05 where y does
    not depend on the covariates, 7 % where x and y follow the sum of age, sex and lesion volume moderately, 10 %
    where they follow it closely (a mean correlation of 0.07 stays). A small p with a small value is no proof.

    Parameters
    ----------
    x : (n, m), NaN where missing.
    y : (n,), NaN where missing.
    z : (n, k) covariates, e.g. age, sex as 0 and 1, lesion volume; NaN where missing. Those that depend on each
        other, or do not vary, count by the rank that they have together.
    permutations, bootstrap : how many of each.
    seed : same seed, same result; it does not depend on the names.
    names : m names; `0`, `1`, ... if not given.
    groups : (n,) people, who are drawn together by the bootstrap; each row its own if not given.

    Returns
    -------
    The columns of `spearman_family`; p is from t with n - 2 - k degrees of freedom, k the covariates' rank. All
    but name and n are null where there is less than one degree of freedom, or where the covariates leave nothing
    of one of the two.

    Raises
    ------
    ValueError
        Shapes that do not match.
    """
    return rank_family(
        x,
        y,
        z,
        permutations=permutations,
        seed=seed,
        confidence=confidence,
        bootstrap=bootstrap,
        names=names,
        groups=groups,
    )
