"""Bootstrap over people by weights: a resample is how often each person was drawn, never a copy of the data.

Belongs here: drawing those weights, ranks under them, and percentile intervals. Does not belong here: what is
measured (`scores.py`, `correlation.py`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

__all__ = ["draw_weights", "percentile_interval", "weighted_midranks"]


def draw_weights(groups: Sequence[Hashable] | None, n: int, resamples: int, random: np.random.Generator) -> np.ndarray:
    """How often each row is in each resample: (resamples, n) float64, whole numbers.

    Groups (people) are drawn with replacement, as many as there are; all rows of a group follow it. Without
    groups each row is its own.

    Raises
    ------
    ValueError
        Not one group per row.
    """
    if groups is None:
        member, count = np.arange(n), n
    else:
        if len(groups) != n:
            raise ValueError(f"bootstrap: {len(groups)} groups for {n} rows")
        index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        member, count = np.array([index[group] for group in groups], dtype=int), len(index)
    if n == 0:
        return np.zeros((resamples, 0))
    drawn = random.multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn[:, member].astype(np.float64)


def weighted_midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks of `values` in every resample, ties sharing their mean rank.

    Parameters
    ----------
    values : (n,) finite numbers.
    weights : (resamples, n) whole numbers: how often each row is in the resample.

    Returns
    -------
    (resamples, n): the rank, from 1 to the resample's size, of each row's copies; of a row that is not in the
    resample a number without meaning.
    """
    if not len(values):
        return np.zeros(weights.shape)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    up_to = np.cumsum(weights[:, order], axis=1)[:, last]
    before = np.concatenate([np.zeros((len(weights), 1)), up_to[:, :-1]], axis=1)
    tie = np.empty(len(values), dtype=int)
    tie[order] = np.repeat(np.arange(len(last)), np.diff(last, prepend=-1))
    return ((before + up_to + 1) / 2)[:, tie]


def percentile_interval(draws: np.ndarray, confidence: float) -> tuple[float | None, float | None, int]:
    """Percentile bootstrap interval of the finite `draws`, and their number; (None, None, 0) without any."""
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return None, None, 0
    low, high = np.quantile(finite, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high), len(finite)
