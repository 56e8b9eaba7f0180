"""How good predictions are, with intervals over people.

Belongs here: measures of predicted against true values. Does not belong here: more than two classes
(`class_scores.py`), who is scored with whom (sets, folds, ensembles).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import polars as pl

from relevance_assets.statistics.resampling import draw_weights, percentile_interval, weighted_midranks

__all__ = ["METRICS", "measured", "ratio", "score"]

METRICS = {
    "binary": ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity"),
    "regression": ("mae", "rmse", "r", "r2"),
}
_NUMBERS = ("value", "ci_low", "ci_high")
_SCHEMA = {"metric": pl.String, **dict.fromkeys(_NUMBERS, pl.Float64), "n": pl.Int64, "resamples": pl.Int64}


def score(
    target: np.ndarray,
    output: np.ndarray,
    *,
    kind: Literal["binary", "regression"],
    participants: Sequence[Hashable] | None = None,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
    threshold: float = 0.0,
) -> pl.DataFrame:
    """Every measure of this kind, with a percentile bootstrap interval over people.

    Binary: area under the ROC curve (ties count half), accuracy, balanced accuracy, sensitivity,
    specificity. Regression: mean absolute error and root mean squared error in the target's unit, Pearson's
    r, and R² = 1 - residual / total sum of squares, which is negative where the mean would do better.

    Parameters
    ----------
    target : (n,) binary: 0 or 1; regression: true values.
    output : (n,) binary: any score, positive from `threshold` on (a logit: 0); regression: predicted values.
    participants : (n,) who; a person is drawn with all their scans. Each row its own if not given.

    Returns
    -------
    metric, value, ci_low, ci_high, n (scans), resamples (that the interval rests on: those in which the
    measure is undefined, for instance for want of one class, are left out). An undefined value is null.

    Raises
    ------
    ValueError
        Lengths that differ, values that are not finite, a binary target other than 0 and 1.
    """
    target, output = np.asarray(target, dtype=np.float64), np.asarray(output, dtype=np.float64)
    if target.shape != output.shape or target.ndim != 1:
        raise ValueError(f"scores: {target.shape} targets and {output.shape} outputs")
    if not (np.isfinite(target).all() and np.isfinite(output).all()):
        raise ValueError("scores: a target or an output is not finite")
    if kind == "binary" and not np.isin(target, (0, 1)).all():
        raise ValueError("scores: a binary target must be 0 or 1")
    n = len(target)
    weights = draw_weights(participants, n, bootstrap, np.random.default_rng(seed))
    # The data as they are come first: every row once.
    weights = np.concatenate([np.ones((1, n)), weights])
    is_binary = kind == "binary"
    values = _binary(target, output, threshold, weights) if is_binary else _regression(target, output, weights)
    rows = []
    for metric in METRICS[kind]:
        rows.append({"metric": metric, "n": n} | measured(values[metric], confidence))
    return pl.DataFrame(rows, schema=_SCHEMA)


def measured(values: np.ndarray, confidence: float) -> dict[str, float | int | None]:
    """value, ci_low, ci_high and resamples of one measure: `values` has that of the data, then that of each resample.

    NaN is undefined; without a value there is no interval either.
    """
    low, high, used = percentile_interval(values[1:], confidence)
    found = {"value": float(values[0]), "ci_low": low, "ci_high": high} if np.isfinite(values[0]) else {}
    return {"resamples": used} | found


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """NaN where there is nothing below the line."""
    return above / np.where(below > 0, below, np.nan)


def _binary(target: np.ndarray, output: np.ndarray, threshold: float, weights: np.ndarray) -> dict:
    """Measures in every resample, (resamples,) each; NaN where undefined."""
    positive, called = target == 1, output >= threshold
    positives, negatives = weights[:, positive].sum(axis=1), weights[:, ~positive].sum(axis=1)
    ranks = weighted_midranks(output, weights) * weights
    above = ranks[:, positive].sum(axis=1) - positives * (positives + 1) / 2
    sensitivity = ratio(weights[:, positive & called].sum(axis=1), positives)
    specificity = ratio(weights[:, ~positive & ~called].sum(axis=1), negatives)
    return {
        "auc": ratio(above, positives * negatives),
        "accuracy": ratio(weights[:, positive == called].sum(axis=1), positives + negatives),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def _regression(target: np.ndarray, output: np.ndarray, weights: np.ndarray) -> dict:
    """Measures in every resample, (resamples,) each; NaN where undefined."""
    size = weights.sum(axis=1)
    error = output - target
    squared = weights @ error**2
    of_target, of_output = _centred(target, weights), _centred(output, weights)
    total, spread = (weights * of_target**2).sum(axis=1), (weights * of_output**2).sum(axis=1)
    together = (weights * of_target * of_output).sum(axis=1)
    return {
        "mae": ratio(weights @ np.abs(error), size),
        "rmse": np.sqrt(ratio(squared, size)),
        "r": np.clip(ratio(together, np.sqrt(total * spread)), -1, 1),
        "r2": 1 - ratio(squared, total),
    }


def _centred(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values less their mean in each resample, (resamples, n); exactly 0 where all drawn are equal."""
    first = np.argmax(weights > 0, axis=1)
    from_first = values[None, :] - values[first, None]
    return from_first - ratio((weights * from_first).sum(axis=1), weights.sum(axis=1))[:, None]
