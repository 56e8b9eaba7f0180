"""How a gated model weighs the contrasts, on average over the scans that it classifies correctly.

Belongs here: that average and its interval. Does not belong here: the weights themselves (`models/`), scores
(`scores.py`).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from relevance_assets.statistics.resampling import draw_weights, percentile_interval

__all__ = ["attention_summary"]

_ENSEMBLE = "ensemble"
_UNSEEN = ("validation", "test", "new")
_NUMBERS = ("value", "ci_low", "ci_high")
_SCHEMA = {
    **dict.fromkeys(("set", "fold", "contrast"), pl.String),
    **dict.fromkeys(_NUMBERS, pl.Float64),
    "n": pl.Int64,
}


def attention_summary(
    weights: pl.DataFrame,
    predictions: pl.DataFrame,
    people: pl.DataFrame,
    *,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pl.DataFrame:
    """Mean attention weight of each contrast over the correctly classified scans (Lu et al. 2023, Table II).

    A scan is classified correctly if its output (a logit) is 0 or more and its target 1, or both are less. Fold
    'ensemble' has each scan by the models that never saw it: a validation scan by its own fold's, a test or new
    scan by the mean output and the mean weights of the folds' models.

    Parameters
    ----------
    weights : model, fold, scan, contrast, weight; of one model. As in table `attention_weights`.
    predictions : model, fold, scan, set, target (0 or 1), output; other models than that of `weights` are left
        out. As in table `predictions`.
    people : scan, participant_id.
    bootstrap, confidence, seed : of the percentile interval over people. All people of the set are drawn, also
        those with no scan classified correctly: how many are right is part of what varies.

    Returns
    -------
    set, fold, contrast, value, ci_low, ci_high, n (correctly classified scans); value and interval null if there
    are none. The values of a set and fold sum to 1.

    Raises
    ------
    ValueError
        Weights of several models, a target other than 0 and 1, a scan without weights, prediction or person.
    """
    models = weights["model"].unique().to_list()
    if len(models) > 1:
        raise ValueError(f"attention: weights of {len(models)} models ({', '.join(sorted(models))}); give one's")
    scans = _scans(weights, predictions.filter(pl.col("model").is_in(models)), people)
    contrasts = weights["contrast"].unique(maintain_order=True).to_list()
    unseen = (
        scans.filter(pl.col("set").is_in(_UNSEEN))
        .group_by("set", "scan", maintain_order=True)
        .agg(pl.col("participant_id", "target").first(), pl.col("output", *contrasts).mean())
        .with_columns(fold=pl.lit(_ENSEMBLE))
    )
    rows: list[dict[str, object]] = []
    for frame in (scans, unseen):
        for (name, fold), group in frame.sort("set", "fold", "scan").group_by("set", "fold", maintain_order=True):
            correct = ((group["output"] >= 0) == (group["target"] == 1)).to_numpy()
            random = np.random.default_rng(seed)
            drawn = draw_weights(group["participant_id"].to_list(), group.height, bootstrap, random)[:, correct]
            values = group.select(contrasts).to_numpy()[correct]
            size = drawn.sum(axis=1, keepdims=True)
            means = drawn @ values / np.where(size > 0, size, np.nan)
            for contrast, of_contrast, resampled in zip(contrasts, values.T, means.T, strict=True):
                row: dict[str, object] = {"set": name, "fold": fold, "contrast": contrast, "n": len(of_contrast)}
                if len(of_contrast):
                    low, high, _ = percentile_interval(resampled, confidence)
                    row |= {"value": float(of_contrast.mean()), "ci_low": low, "ci_high": high}
                rows.append(row)
    return pl.DataFrame(rows, schema=_SCHEMA)


def _scans(weights: pl.DataFrame, predictions: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    """One row per fold and scan: set, participant_id, target, output and the weight of each contrast."""
    wide = weights.pivot(on="contrast", index=["fold", "scan"], values="weight") if weights.height else weights
    scans = predictions.select("fold", "scan", "set", "target", "output")
    for frame, on, what in ((wide, ["fold", "scan"], "attention weight"), (people, ["scan"], "participant_id")):
        missing = scans.join(frame, on=on, how="anti")
        if missing.height:
            raise ValueError(f"attention: {missing['scan'][0]} has no {what}; run the stage that makes it")
    alone = wide.join(scans, on=["fold", "scan"], how="anti")
    if alone.height:
        raise ValueError(f"attention: {alone['scan'][0]} has weights but no prediction; run predictions")
    strange = scans.filter(~pl.col("target").is_in([0.0, 1.0]))
    if strange.height:
        raise ValueError(f"attention: {strange['scan'][0]} has target {strange['target'][0]}; classes are 0 and 1")
    return scans.join(wide, on=["fold", "scan"]).join(people.select("scan", "participant_id"), on="scan")
