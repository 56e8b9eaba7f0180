"""A family of rank correlations with one variable: permutation p, corrections, intervals; with or without covariates.

Belongs here: the computation that `correlation.py` and `partial.py` share. Does not belong here: what each of them
means, which variables a study looks at.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from relevance_assets.statistics.resampling import draw_weights, percentile_interval, weighted_midranks

__all__ = ["rank_family"]

# |rho*| >= |rho| must hold for a permutation that gives rho itself, whatever the order of summation.
_TIE = 1e-12
# A variable of whose variance the covariates leave no more than this share is explained by them, but for rounding.
_FLAT = 1e-10
_BLOCK_NUMBERS = 1 << 19
_RESAMPLES = 500  # at a time: ranks of some hundred rows then stay in the cache
_NUMBERS = ("value", "ci_low", "ci_high", "p", "p_permutation", "p_corrected", "p_fdr")
_SCHEMA = {"name": pl.String, **dict.fromkeys(_NUMBERS, pl.Float64), "correction": pl.String, "n": pl.Int64}


class _Pattern(NamedTuple):
    """Columns of x that are complete in the same rows."""

    rows: np.ndarray  # (n,) bool
    columns: np.ndarray  # numbers of the columns
    of_x: np.ndarray  # (rows, columns) residuals of the ranks, of length one; NaN where nothing is left
    of_y: np.ndarray  # (rows,) the same of y
    basis: np.ndarray  # (rows, rank) orthonormal basis of the covariates' centred ranks


def rank_family(
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    *,
    permutations: int,
    seed: int,
    confidence: float,
    bootstrap: int,
    names: Sequence[str] | None,
    groups: Sequence[Hashable] | None,
) -> pl.DataFrame:
    """Pearson's r of mid-ranks, both less what the mid-ranks of `z` (n, k) explain linearly; k may be 0.

    Parameters, result and errors are those of `spearman_family` and `partial_spearman_family`.
    """
    x, y, z = (np.asarray(values, dtype=np.float64) for values in (x, y, z))
    if x.ndim != 2 or z.ndim != 2:
        raise ValueError(f"correlation: x and covariates must be tables of rows and columns, not {x.shape}, {z.shape}")
    names = [str(i) for i in range(x.shape[1])] if names is None else list(names)
    if x.shape != (len(y), len(names)) or len(z) != len(y):
        raise ValueError(
            f"correlation: x is {x.shape}, y has {len(y)} rows, covariates {len(z)}, {len(names)} names; "
            "give one row per scan in each and one name per column"
        )
    draws = np.random.SeedSequence(seed).spawn(2)
    weights = draw_weights(groups, len(y), bootstrap, np.random.default_rng(draws[0]))
    usable = np.flatnonzero(np.isfinite(y) & np.isfinite(z).all(axis=1))
    # By y (given z), so that one random order of all rows gives nearly the same permutation of any subset of them.
    usable = usable[np.argsort(_left_of(y[usable], z[usable]), kind="stable")]
    x, y, z, weights = x[usable], y[usable], z[usable], weights[:, usable]

    patterns = list(_patterns(x, y, z))
    m = len(names)
    rho, n, free = np.full(m, np.nan), np.zeros(m, dtype=int), np.zeros(m, dtype=int)
    intervals: list[tuple[float | None, float | None]] = [(None, None)] * m
    for rows, columns, of_x, of_y, basis in patterns:
        n[columns], free[columns] = len(of_y), len(of_y) - 2 - basis.shape[1]
        rho[columns] = of_y @ of_x
        if free[columns[0]] < 1:
            rho[columns] = np.nan
            continue
        drawn = _bootstrap(x[rows][:, columns], y[rows], z[rows], weights[:, rows])
        for column, values in zip(columns, drawn, strict=True):
            intervals[column] = percentile_interval(values, confidence)[:2]
    rho = np.where(np.abs(rho) > 1 - _TIE, np.sign(rho), rho)
    single, family = _permute(patterns, rho, len(y), permutations, np.random.default_rng(draws[1]))
    known = np.isfinite(rho)
    discovery = np.full(m, np.nan)
    if known.any():
        discovery[known] = stats.false_discovery_control(single[known])
    rows_out = []
    for i, name in enumerate(names):
        row: dict[str, object] = {"name": name, "n": int(n[i])}
        if known[i]:
            row |= {"value": float(rho[i]), "p": _asymptotic_p(rho[i], free[i]), "correction": "max-statistic"}
            row |= {"ci_low": intervals[i][0], "ci_high": intervals[i][1], "p_permutation": float(single[i])}
            row |= {"p_corrected": float(family[i]), "p_fdr": float(discovery[i])}
        rows_out.append(row)
    return pl.DataFrame(rows_out, schema=_SCHEMA)


def _patterns(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> Iterator[_Pattern]:
    """Each set of rows that is complete for some columns, with what remains of the ranks there."""
    complete = np.isfinite(x)
    found: dict[bytes, list[int]] = {}
    for column in range(x.shape[1]):
        found.setdefault(complete[:, column].tobytes(), []).append(column)
    for columns in found.values():
        rows = complete[:, columns[0]]
        basis = _basis(z[rows])
        of_x, of_y = _unit_residuals(x[rows][:, columns], basis), _unit_residuals(y[rows, None], basis)[:, 0]
        yield _Pattern(rows, np.array(columns), of_x, of_y, basis)


def _left_of(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Residuals of y's ranks given those of z, (n,), rounded so that equal ones compare equal."""
    ranks, basis = _centred_ranks(y[:, None])[:, 0], _basis(z)
    return np.round(ranks - basis @ (basis.T @ ranks), 9)


def _basis(z: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the centred mid-ranks of the columns, (n, rank)."""
    if not z.size:
        return np.zeros((len(z), 0))
    left, size, _ = np.linalg.svd(_unit_residuals(z, np.zeros((len(z), 0)), flat=0.0), full_matrices=False)
    return left[:, size**2 > _FLAT]


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Mid-ranks of each column less their mean; exact, they are multiples of a half."""
    if not len(values):
        return np.zeros(values.shape)
    return stats.rankdata(values, axis=0) - (len(values) + 1) / 2


def _unit_residuals(values: np.ndarray, basis: np.ndarray, flat: float = np.nan) -> np.ndarray:
    """Ranks of each column less their projection on `basis`, of length one; `flat` where nothing is left."""
    ranks = _centred_ranks(values)
    total = (ranks**2).sum(axis=0)
    # twice: the second takes what rounding left of the first
    for _ in range(2 if basis.shape[1] else 0):
        ranks = ranks - basis @ (basis.T @ ranks)
    square = (ranks**2).sum(axis=0)
    varies = square > _FLAT * total
    return np.where(varies, ranks / np.sqrt(np.where(varies, square, 1)), flat)


def _bootstrap(x: np.ndarray, y: np.ndarray, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For each column its correlation in every resample, (m, resamples); NaN where something does not vary there.

    Everything follows from sums of squares and products of the ranks in the resample: with r_xy and so on
    Pearson's r of ranks, (r_xy - r_xz R_zz^-1 r_zy) / sqrt((1 - r_xz R_zz^-1 r_zx) (1 - r_yz R_zz^-1 r_zy)).
    """
    drawn = np.empty((x.shape[1], len(weights)))
    for start in range(0, len(weights), _RESAMPLES):
        block = slice(start, start + _RESAMPLES)
        part = weights[block]
        middle = (part.sum(axis=1, keepdims=True) + 1) / 2
        # (1 + k, resamples, rows): y first
        others = np.stack([weighted_midranks(values, part) - middle for values in (y, *z.T)])
        weighted = others * part
        products = np.einsum("irn,jrn->rij", weighted, others)
        squares = np.diagonal(products, axis1=1, axis2=2)
        r = products * _inverse_root(squares[:, :, None] * squares[:, None, :])
        inverse = np.linalg.pinv(r[:, 1:, 1:], rcond=_FLAT, hermitian=True)
        slopes = np.einsum("rij,rj->ri", inverse, r[:, 1:, 0])
        left_y = np.where(squares[:, 0] > 0, 1 - (slopes * r[:, 1:, 0]).sum(axis=1), 0)
        weighted, part = np.ascontiguousarray(weighted.transpose(0, 2, 1)), np.ascontiguousarray(part.T)
        for column, values in enumerate(x.T):
            with_others, square = _rank_products(values, part, weighted)
            of_x = (with_others * _inverse_root(square * squares.T)).T
            explained = np.einsum("ri,rij,rj->r", of_x[:, 1:], inverse, of_x[:, 1:])
            above = of_x[:, 0] - (of_x[:, 1:] * slopes).sum(axis=1)
            left = np.where(square > 0, 1 - explained, 0)
            varies = (left > _FLAT) & (left_y > _FLAT)
            drawn[column, block] = above / np.sqrt(np.where(varies, left * left_y, np.nan))
    return np.clip(drawn, -1, 1)


def _inverse_root(square: np.ndarray) -> np.ndarray:
    """1 / sqrt; 0 of what is 0, so that a constant variable explains nothing."""
    return np.where(square > 0, 1 / np.sqrt(np.where(square > 0, square, 1)), 0)


def _rank_products(values: np.ndarray, weights: np.ndarray, weighted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of a variable's mid-ranks with other variables' and with themselves, in every resample.

    The other ranks are centred, so the middle of these need not be known; and the sum of squares of centred
    mid-ranks is (N³ - sum over ties of t³) / 12. All numbers are multiples of a quarter: the sums are exact.

    Parameters
    ----------
    values : (n,)
    weights : (n, resamples) how often each row is in the resample.
    weighted : (j, n, resamples) other variables' centred mid-ranks times these weights.

    Returns
    -------
    (j, resamples) and (resamples,).
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    tied = len(first) < len(values)
    size = weights[order]
    if tied:
        size = np.add.reduceat(size, first, axis=0)
    up_to = size.copy()
    # row by row: numpy's cumsum along the first axis takes three to five times as long
    for before, row in itertools.pairwise(up_to):
        row += before
    square = (up_to[-1] ** 3 - np.einsum("gr,gr,gr->r", size, size, size)) / 12
    up_to -= size / 2
    ranks = np.empty(weights.shape)
    ranks[order] = np.repeat(up_to, np.diff(first, append=len(values)), axis=0) if tied else up_to
    return np.einsum("jnr,nr->jr", weighted, ranks), square


def _permute(
    patterns: list[_Pattern], rho: np.ndarray, n: int, permutations: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Permutation p of each column by itself, and against the family's maximum; NaN where rho is."""
    known = np.isfinite(rho)
    threshold = np.abs(rho) - _TIE
    single, family = np.zeros(len(rho)), np.zeros(len(rho))
    prepared = [(p, np.ascontiguousarray(p.of_x[:, known[p.columns]]), p.columns[known[p.columns]]) for p in patterns]
    prepared = [(p, of_x, columns) for p, of_x, columns in prepared if len(columns)]
    block = max(1, _BLOCK_NUMBERS // max(1, n, len(rho)))
    for start in range(0, permutations if prepared else 0, block):
        order = np.argsort(random.random((min(block, permutations - start), n)), axis=1)
        greatest = np.zeros(len(order))
        for pattern, of_x, columns in prepared:
            shuffled = _shuffled(pattern, order)
            size = np.abs(shuffled @ of_x)
            if pattern.basis.shape[1]:
                # Freedman & Lane: the permuted residuals are regressed on the covariates again. Of x nothing lies
                # along these; where nothing is left of y either, the permutation counts as reaching rho.
                left = 1 - ((shuffled @ pattern.basis) ** 2).sum(axis=1, keepdims=True)
                size = np.where(left > _FLAT, size / np.sqrt(np.maximum(left, _FLAT)), 1)
            single[columns] += (size >= threshold[columns]).sum(axis=0)
            np.maximum(greatest, size.max(axis=1), out=greatest)
        family += (greatest[:, None] >= threshold).sum(axis=0)
    unknown = np.where(known, 0.0, np.nan)
    return (single + 1) / (permutations + 1) + unknown, (family + 1) / (permutations + 1) + unknown


def _shuffled(pattern: _Pattern, order: np.ndarray) -> np.ndarray:
    """What y leaves, in random orders of all rows of which the pattern's are taken: (permutations, rows)."""
    rows = pattern.rows
    if not rows.all():
        order = (np.cumsum(rows) - 1)[order[rows[order]]].reshape(len(order), -1)
    shuffled = np.empty((len(order), len(pattern.of_y)))
    np.put_along_axis(shuffled, order, np.broadcast_to(pattern.of_y, shuffled.shape), axis=1)
    return shuffled


def _asymptotic_p(rho: float, free: int) -> float:
    """Two-sided p of a correlation from Student's t with `free` degrees of freedom."""
    if abs(rho) >= 1:
        return 0.0
    return float(2 * stats.t.sf(abs(rho) * np.sqrt(free / ((1 - rho) * (1 + rho))), free))
