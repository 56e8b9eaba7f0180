"""Correlations of a subject table's ratios, age and sex, and whether they differ between the groups.

Belongs here: which pairs are correlated, by which recipe, with closed-form intervals. Does not belong here: families
with permutations and bootstrap (`correlation.py`, `partial.py`), shares that sum to one (`compositions.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from relevance_assets.statistics.lesion_profile import CORRELATED, RATIOS, age_burden, correlation_matrix
from relevance_assets.statistics.partial import partial_spearman_family
from relevance_assets.statistics.people import People, correct, frame_of, group_is, in_panel, with_lesions

__all__ = ["COLUMNS", "KEY_PAIRS", "correlations", "difference", "rank_correlation"]

COLUMNS = (
    *("analysis", "recipe", "variant", "stratum", "x", "y", "method", "filter", "value", "ci_low", "ci_high"),
    *("p", "p_corrected", "p_fdr", "correction", "n", "n_a", "n_b"),
)
FAMILY = ("analysis", "variant", "method")
# the pairs that the study compares between the groups, in its order
KEY_PAIRS = (
    ("age", "ventricle_ratio"),
    ("age", "lesion_ratio"),
    ("ventricle_ratio", "lesion_ratio"),
    ("age", "periventricular_ratio"),
    ("age", "paraventricular_ratio"),
    ("age", "juxtacortical_ratio"),
    ("ventricle_ratio", "periventricular_ratio"),
    ("lesion_ratio", "periventricular_ratio"),
)
_GROUPS = ("HC", "MS")
_Z = stats.norm.ppf(0.975)
Row = dict[str, Any]


def correlations(variants: Mapping[str, People]) -> pl.DataFrame:
    """Every correlation of the subject table.

    As published: `matrix` (seven variables in each group, complete cases, Bonferroni over 21), `key_pairs` (eight of
    these beside each other), `age_burden` (Pearson, by sex). Sound: `ranks` (Spearman of ratios and age), `partial`
    (Spearman of ratios given age and sex, of age and ratios given sex), `group_difference` (rho of MS minus rho of HC
    in the key pairs). Shares only of people with lesions.

    Returns
    -------
    analysis, recipe, variant, stratum (group), x, y, method, filter, value, ci_low, ci_high (95 %), p, p_corrected,
    p_fdr, correction, n, and of a difference n_a (HC) and n_b (MS). A constant variable gives null.
    """
    rows: list[Row] = []
    for variant, people in variants.items():
        found = [*_published(people), *_ranks(people), *_partial(people), *_differences(people)]
        rows += [{"variant": variant} | row for row in found]
    correct(rows, FAMILY)
    return frame_of(rows, COLUMNS)


def rank_correlation(x: np.ndarray, y: np.ndarray, z: Sequence[np.ndarray] = ()) -> Row:
    """Spearman's rho of two variables, given others if there are any, with its interval.

    Value and p are those of `partial_spearman_family`. The interval is Fisher's with the standard error
    sqrt((1 + rho² / 2) / (n - 3 - k)) of Bonett and Wright (2000), k the number of covariates that vary; none
    where |rho| = 1 or n is not above 3 + k.

    Parameters
    ----------
    x, y, z : (n,) each, finite.

    Returns
    -------
    value, ci_low, ci_high, p, n; all but n are None where a variable is constant.
    """
    z = [values for values in z if values.size and np.ptp(values) > 0]
    given = np.column_stack(z) if z else np.zeros((x.size, 0))
    (found,) = partial_spearman_family(x[:, None], y, given, permutations=0, seed=0, bootstrap=0).iter_rows(named=True)
    row = {name: found[name] for name in ("value", "p", "n")}
    error = _error(row["value"], x.size, len(z))
    if error is None:
        return row | {"ci_low": None, "ci_high": None}
    low, high = np.tanh(np.arctanh(row["value"]) + np.array([-1, 1]) * _Z * error)
    return row | {"ci_low": float(low), "ci_high": float(high)}


def _error(rho: float | None, n: int, given: int = 0) -> float | None:
    """Standard error of Fisher's z of Spearman's rho; None where there is none."""
    if rho is None or abs(rho) >= 1 or n <= 3 + given:
        return None
    return float(np.sqrt((1 + rho**2 / 2) / (n - 3 - given)))


def difference(a: Row, b: Row) -> Row:
    """rho of b minus rho of a, of two independent samples as `rank_correlation` gives them.

    The interval is that of Zou (2007) from the two samples' intervals, p from the difference of Fisher's z.
    """
    of_a, of_b = _error(a["value"], a["n"]), _error(b["value"], b["n"])
    row: Row = {"n": a["n"] + b["n"], "n_a": a["n"], "n_b": b["n"]}
    if of_a is None or of_b is None:
        return row
    value = b["value"] - a["value"]
    low = value - np.hypot(b["value"] - b["ci_low"], a["ci_high"] - a["value"])
    high = value + np.hypot(b["ci_high"] - b["value"], a["value"] - a["ci_low"])
    z = (np.arctanh(b["value"]) - np.arctanh(a["value"])) / np.hypot(of_a, of_b)
    return row | {"value": value, "ci_low": float(low), "ci_high": float(high), "p": float(2 * stats.norm.sf(abs(z)))}


def _of(people: People, group: str, x: str, y: str, *given: str) -> tuple[Row, People]:
    some = people.where(group_is(group), *with_lesions(x, y)).known(x, y, *given)
    values = [some.frame[name].to_numpy() for name in (x, y, *given)]
    return rank_correlation(values[0], values[1], values[2:]), some


def _ranks(people: People) -> Iterator[Row]:
    for group, (x, y) in itertools.product(_GROUPS, itertools.combinations(("age", *RATIOS), 2)):
        row, some = _of(people, group, x, y)
        if some.frame.height:
            about = {"analysis": "ranks", "recipe": "sound", "stratum": group, "x": x, "y": y, "method": "spearman"}
            yield about | row | {"filter": some.filter}


def _partial(people: People) -> Iterator[Row]:
    for group, (x, y) in itertools.product(_GROUPS, itertools.combinations(("age", *RATIOS), 2)):
        given = ("sex",) if x == "age" else ("age", "sex")
        row, some = _of(people, group, x, y, *given)
        if some.frame.height:
            about = {"analysis": "partial", "recipe": "sound", "stratum": group, "x": x, "y": y}
            yield about | row | {"filter": some.filter, "method": f"partial spearman given {' and '.join(given)}"}


def _differences(people: People) -> Iterator[Row]:
    for x, y in KEY_PAIRS:
        (a, of_a), (b, of_b) = (_of(people, group, x, y) for group in _GROUPS)
        if of_a.frame.height and of_b.frame.height:
            about = {"analysis": "group_difference", "recipe": "sound", "stratum": "MS - HC", "x": x, "y": y}
            both = people.where(group_is(*_GROUPS), *with_lesions(x, y)).known(x, y)
            yield about | difference(a, b) | {"method": "difference of spearman", "filter": both.filter}


def _published(people: People) -> Iterator[Row]:
    for group in _GROUPS:
        some = people.where(group_is(group)).known(*CORRELATED)
        if not some.frame.height:
            continue
        matrix: dict[frozenset[str], Row] = {}
        for found in correlation_matrix(people.frame, group).iter_rows(named=True):
            p = found["p"]
            about = {"recipe": "as_published", "stratum": group, "x": found["first"], "y": found["second"]}
            about |= {"method": found["method"], "filter": some.filter, "value": found["r"], "p": p, "n": found["n"]}
            if p is not None:
                about |= {"p_corrected": min(1.0, 21 * p), "correction": "bonferroni over 21, as published"}
            matrix[frozenset((found["first"], found["second"]))] = about
            yield about | {"analysis": "matrix"}
        for x, y in KEY_PAIRS:
            yield matrix[frozenset((x, y))] | {"analysis": "key_pairs", "x": x, "y": y}
    for row in age_burden(people.frame).iter_rows(named=True):
        stratum, measure, some = in_panel(people, row["panel"], row["group"])
        about = {"analysis": "age_burden", "recipe": "as_published", "stratum": stratum, "x": "age", "y": measure}
        yield about | {"method": "pearson", "filter": some.filter, "value": row["r"], "p": row["p"], "n": row["n"]}
