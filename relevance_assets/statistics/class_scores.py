"""How well classes are told apart, with intervals over people.

Belongs here: measures and the confusion matrix of three classes or two, from one output per class. Does not belong
here: a binary target with one output and regressions (`scores.py`), who is scored with whom (sets, folds, ensembles).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import polars as pl
from scipy.special import logsumexp

from relevance_assets.statistics.resampling import draw_weights, weighted_midranks
from relevance_assets.statistics.scores import measured, ratio

__all__ = ["BY_CLASS", "OVERALL", "called", "class_scores", "confusion"]

OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auc")
BY_CLASS = ("recall", "precision", "f1", "auc")
_SCHEMA = {
    "metric": pl.String,
    "class": pl.String,
    **dict.fromkeys(("value", "ci_low", "ci_high"), pl.Float64),
    "n": pl.Int64,
    "resamples": pl.Int64,
}


def class_scores(
    target: np.ndarray,
    output: np.ndarray,
    classes: Sequence[str],
    *,
    participants: Sequence[Hashable] | None = None,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """Every measure, with a percentile bootstrap interval over people.

    Over all classes: accuracy, balanced accuracy (mean recall), macro F1 and macro AUC (means over the classes).
    Of each class: recall TP / (TP + FN), precision TP / (TP + FP), F1 = 2 TP / (2 TP + FP + FN), and the area under
    the ROC curve of its softmax probability, this class against the rest (ties count half).

    Parameters
    ----------
    target : (n,) the place of the true class in `classes`.
    output : (n, classes) logits.
    participants : (n,) who; a person is drawn with all their images. Each row its own if not given.

    Returns
    -------
    metric, class (null for measures over all), value, ci_low, ci_high, n (images; of one class, those that truly are
    of it), resamples (that the interval rests on). An undefined value is null: recall and AUC of a class that is not
    there, precision of one that is never called, and what is a mean over such. Resamples in which the measure is
    undefined are left out.

    Raises
    ------
    ValueError
        Shapes that do not fit, outputs that are not finite, a target that is no class.
    """
    target, output = _checked(target, output, classes)
    n = len(target)
    weights = draw_weights(participants, n, bootstrap, np.random.default_rng(seed))
    weights = np.concatenate([np.ones((1, n)), weights])  # the data as they are come first
    said = called(output)
    by_class = [_one(target == k, said == k, _log_odds(output, k), weights) for k in range(len(classes))]
    mean = {metric: np.mean([values[metric] for values in by_class], axis=0) for metric in BY_CLASS}
    overall = {
        "accuracy": ratio(weights[:, target == said].sum(axis=1), weights.sum(axis=1)),
        "balanced_accuracy": mean["recall"],
        "macro_f1": mean["f1"],
        "macro_auc": mean["auc"],
    }
    rows: list[dict[str, object]] = [
        {"metric": metric, "class": None, "n": n, **measured(overall[metric], confidence)} for metric in OVERALL
    ]
    for name, values in zip(classes, by_class, strict=True):
        own = {"class": name, "n": int((target == classes.index(name)).sum())}
        rows += [{"metric": metric, **own, **measured(values[metric], confidence)} for metric in BY_CLASS]
    return pl.DataFrame(rows, schema=_SCHEMA)


def confusion(target: np.ndarray, output: np.ndarray, classes: Sequence[str]) -> pl.DataFrame:
    """How many images of each true class are called what; all pairs, also those that are empty.

    Parameters are those of `class_scores`, and so are the errors.

    Returns
    -------
    true, predicted, count; by true class, then by predicted class, in the order of `classes`.
    """
    target, output = _checked(target, output, classes)
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (target, called(output)), 1)
    rows = [(true, said, int(counts[i, j])) for i, true in enumerate(classes) for j, said in enumerate(classes)]
    return pl.DataFrame(rows, schema={"true": pl.String, "predicted": pl.String, "count": pl.Int64}, orient="row")


def called(output: np.ndarray) -> np.ndarray:
    """The place of the greatest of each row's outputs, (n, classes) -> (n,); of equal ones the first."""
    return output.argmax(axis=1)


def _checked(target: np.ndarray, output: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    target, output = np.asarray(target), np.asarray(output, dtype=np.float64)
    if target.ndim != 1 or output.shape != (len(target), len(classes)) or len(classes) < 2:
        raise ValueError(f"class scores: {target.shape} targets and {output.shape} outputs of {len(classes)} classes")
    if not np.isfinite(output).all():
        raise ValueError("class scores: an output is not finite")
    if len(odd := target[~np.isin(target, range(len(classes)))]):
        raise ValueError(f"class scores: targets must be 0 to {len(classes) - 1}, not {odd[0]}")
    return target.astype(np.intp), output


def _log_odds(output: np.ndarray, place: int) -> np.ndarray:
    """log p / (1 - p) of a class's softmax probability: in its order, but never rounded to 1."""
    return output[:, place] - logsumexp(np.delete(output, place, axis=1), axis=1)


def _one(is_class: np.ndarray, said: np.ndarray, score: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of one class in every resample, (resamples,) each; NaN where undefined."""
    true, called_so = weights[:, is_class].sum(axis=1), weights[:, said].sum(axis=1)
    both = weights[:, is_class & said].sum(axis=1)
    ranks = weighted_midranks(score, weights) * weights
    above = ranks[:, is_class].sum(axis=1) - true * (true + 1) / 2
    return {
        "recall": ratio(both, true),
        "precision": ratio(both, called_so),
        "f1": ratio(2 * both, true + called_so),
        "auc": ratio(above, true * (weights.sum(axis=1) - true)),
    }
