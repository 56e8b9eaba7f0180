"""Rank correlations of many variables with one, as one family: permutation p, correction, intervals.

Belongs here: Spearman's rho of a family. Does not belong here: which variables and strata a study looks at.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Literal

import numpy as np
import polars as pl
from scipy import stats

from relevance_assets.statistics.resampling import draw_weights, percentile_interval, weighted_midranks

__all__ = ["spearman_family"]

# |rho*| >= |rho| must hold for a permutation that gives rho itself, whatever the order of summation.
_TIE = 1e-12
_BLOCK_NUMBERS = 1 << 19
_NUMBERS = ("value", "ci_low", "ci_high", "p", "p_permutation", "p_corrected")
_SCHEMA = {"name": pl.String, **dict.fromkeys(_NUMBERS, pl.Float64), "correction": pl.String, "n": pl.Int64}


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
    correction: Literal["max-statistic", "fdr"] = "max-statistic",
) -> pl.DataFrame:
    """Spearman's rho of every column of `x` with `y`, tested as one family.

    Rho is Pearson's r of mid-ranks. Rows where `x` or `y` is NaN are left out, column by column. The
    permutation p is two-sided, (b + 1) / (B + 1) with b the number of the B permutations of `y` that have
    |rho*| >= |rho| (Phipson & Smyth 2010). 'max-statistic' is the single-step correction of Westfall & Young
    (1993): |rho| against the family's greatest |rho*| of the same permutation, which keeps the columns'
    dependence; 'fdr' is Benjamini & Hochberg (1995) on the permutation p. The interval is the percentile
    bootstrap over `groups`.

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
    p_permutation, p_corrected, correction, n. All but name and n are null where fewer than three pairs are
    left or one of the two does not vary.

    Raises
    ------
    ValueError
        Shapes that do not match.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    names = [str(i) for i in range(x.shape[1])] if names is None else list(names)
    if x.shape != (len(y), len(names)):
        raise ValueError(f"correlation: x is {x.shape}, y has {len(y)} rows, {len(names)} names")
    draws = np.random.SeedSequence(seed).spawn(2)
    weights = draw_weights(groups, len(y), bootstrap, np.random.default_rng(draws[0]))
    # By y, so that one random order of all rows gives nearly the same permutation of any subset of them.
    order = np.argsort(y, kind="stable")
    x, y, weights = x[order], y[order], weights[:, order]

    patterns = list(_patterns(x, y))
    rho = np.full(len(names), np.nan)
    n = np.zeros(len(names), dtype=int)
    intervals: list[tuple[float | None, float | None]] = [(None, None)] * len(names)
    for rows, columns in patterns:
        n[columns] = rows.sum()
        rho[columns] = _unit_ranks(x[rows][:, columns]).T @ _unit_ranks(y[rows, None])[:, 0]
        draws_of_pattern = _bootstrap(x[rows][:, columns], y[rows], weights[:, rows])
        for column, drawn in zip(columns, draws_of_pattern, strict=True):
            if np.isfinite(rho[column]):
                intervals[column] = percentile_interval(drawn, confidence)[:2]
    rho = np.where(n >= 3, rho, np.nan)
    rho = np.where(np.abs(rho) > 1 - _TIE, np.sign(rho), rho)
    single, family = _permute(x, y, patterns, rho, permutations, np.random.default_rng(draws[1]))
    known = np.isfinite(rho)
    if correction == "fdr" and known.any():
        family[known] = stats.false_discovery_control(single[known])
    rows_out = []
    for i, name in enumerate(names):
        row: dict[str, object] = {"name": name, "n": int(n[i])}
        if known[i]:
            row |= {"value": float(rho[i]), "p": _asymptotic_p(rho[i], n[i]), "correction": correction}
            row |= {"ci_low": intervals[i][0], "ci_high": intervals[i][1]}
            row |= {"p_permutation": float(single[i]), "p_corrected": float(family[i])}
        rows_out.append(row)
    return pl.DataFrame(rows_out, schema=_SCHEMA)


def _patterns(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each set of rows that is complete for some columns, and those columns."""
    complete = np.isfinite(x) & np.isfinite(y)[:, None]
    found: dict[bytes, list[int]] = {}
    for column in range(x.shape[1]):
        found.setdefault(complete[:, column].tobytes(), []).append(column)
    for columns in found.values():
        yield complete[:, columns[0]], np.array(columns)


def _unit_ranks(values: np.ndarray) -> np.ndarray:
    """Mid-ranks of each column, centred, of length one; NaN for a column that does not vary."""
    if not len(values):
        return np.full(values.shape, np.nan)
    ranks = stats.rankdata(values, axis=0)
    ranks = ranks - (len(values) + 1) / 2
    length = np.sqrt((ranks**2).sum(axis=0))
    return ranks / np.where(length > 0, length, np.nan)


def _bootstrap(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Iterator[np.ndarray]:
    """For each column its rho in every resample, (bootstrap,); NaN where something does not vary there."""
    middle = (weights.sum(axis=1, keepdims=True) + 1) / 2
    of_y = weighted_midranks(y, weights) - middle
    weighted_y = weights * of_y
    length_y = (weighted_y * of_y).sum(axis=1)
    for column in x.T:
        of_x = weighted_midranks(column, weights) - middle
        length_x = (weights * of_x * of_x).sum(axis=1)
        square = length_x * length_y
        yield (weighted_y * of_x).sum(axis=1) / np.sqrt(np.where(square > 0, square, np.nan))


def _permute(
    x: np.ndarray,
    y: np.ndarray,
    patterns: list[tuple[np.ndarray, np.ndarray]],
    rho: np.ndarray,
    permutations: int,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Permutation p of each column by itself, and against the family's maximum; NaN where rho is."""
    prepared = []
    for rows, columns in patterns:
        columns = columns[np.isfinite(rho[columns])]
        if len(columns):
            ranks = _unit_ranks(y[rows, None])[:, 0]
            prepared.append((rows, columns, _unit_ranks(x[rows][:, columns]), ranks))
    threshold = np.abs(rho) - _TIE
    single, family = np.zeros(len(rho)), np.zeros(len(rho))
    block = max(1, _BLOCK_NUMBERS // max(1, *x.shape))
    for start in range(0, permutations, block):
        keys = random.random((min(block, permutations - start), len(y)))
        greatest = np.zeros(len(keys))
        for rows, columns, of_x, of_y in prepared:
            shuffled = np.empty((len(keys), len(of_y)))
            order = np.argsort(keys if rows.all() else keys[:, rows], axis=1)
            np.put_along_axis(shuffled, order, np.broadcast_to(of_y, shuffled.shape), axis=1)
            size = np.abs(shuffled @ of_x)
            single[columns] += (size >= threshold[columns]).sum(axis=0)
            np.maximum(greatest, size.max(axis=1), out=greatest)
        family += (greatest[:, None] >= threshold).sum(axis=0)
    unknown = np.where(np.isfinite(rho), 0.0, np.nan)
    return (single + 1) / (permutations + 1) + unknown, (family + 1) / (permutations + 1) + unknown


def _asymptotic_p(rho: float, n: int) -> float:
    """Two-sided p of rho from Student's t with n - 2 degrees of freedom."""
    if abs(rho) >= 1:
        return 0.0
    return float(2 * stats.t.sf(abs(rho) * np.sqrt((n - 2) / ((1 - rho) * (1 + rho))), n - 2))
