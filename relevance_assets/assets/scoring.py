"""Scores of predictions, per set: each fold's model, their mean, and the ensemble of folds for the test set.

Belongs here: who is scored with whom. Does not belong here: measures and intervals (`statistics/scores.py`).
"""

from __future__ import annotations

import polars as pl

from relevance_assets.assets.workspace import Workspace

__all__ = ["brain_age_gap", "out_of_sample", "score_table"]

ENSEMBLE = "ensemble"


def out_of_sample(predictions: pl.DataFrame) -> pl.DataFrame:
    """One output per model and scan, by models that never saw it: validation scans their own fold's, test and new
    scans the mean over folds."""
    unseen = predictions.filter(pl.col("set").is_in(["validation", "test", "new"]))
    return (
        unseen.group_by("model", "scan", "set")
        .agg(pl.col("target").first(), pl.col("output").mean())
        .sort("model", "set", "scan")
    )


def score_table(workspace: Workspace, predictions: pl.DataFrame) -> pl.DataFrame:
    """Rows of table `scores` for every model in `predictions`."""
    from relevance_assets.statistics.scores import score

    study = workspace.study
    person = workspace.read("scans").select("scan", "participant_id")
    frames = []
    for (model,), rows in predictions.join(person, on="scan").group_by("model", maintain_order=True):
        groups: list[tuple[str, str, pl.DataFrame]] = []
        for fold in sorted(rows["fold"].unique()):
            of_fold = rows.filter(pl.col("fold") == fold)
            groups += [
                (name, fold, of_fold.filter(pl.col("set") == name)) for name in ("train", "validation", "test", "new")
            ]
        pooled = out_of_sample(rows).join(person, on="scan")
        # Validation scans pooled over folds: each by its own fold's model, whose scale may differ (stated, not hidden).
        groups += [(name, ENSEMBLE, pooled.filter(pl.col("set") == name)) for name in ("validation", "test", "new")]
        scored = []
        for name, fold, group in groups:
            if group.is_empty():
                continue
            measured = score(
                group["target"].to_numpy(),
                group["output"].to_numpy(),
                kind=study.target.of_one_output,
                participants=group["participant_id"].to_list(),
                bootstrap=study.statistics.bootstrap,
                confidence=study.statistics.confidence,
                seed=study.statistics.seed,
            )
            scored.append(measured.with_columns(set=pl.lit(name), fold=pl.lit(fold)))
        table = pl.concat(scored).with_columns(model=pl.lit(model))
        mean = (
            table.filter(pl.col("fold") != ENSEMBLE)
            .group_by("model", "set", "metric", maintain_order=True)
            # Folds share the test scans and the new ones; each validation scan belongs to one of them.
            .agg(
                pl.col("value").mean(),
                pl.when(pl.col("set").first().is_in(["test", "new"]))
                .then(pl.col("n").max())
                .otherwise(pl.col("n").sum())
                .alias("n"),
            )
            .with_columns(fold=pl.lit("mean"))
        )
        frames += [table, mean]
    return pl.concat(frames, how="diagonal_relaxed")


def brain_age_gap(workspace: Workspace, predictions: pl.DataFrame) -> pl.DataFrame:
    """Rows of table `brain_age_gap`, from predictions by models that never saw the scan."""
    from relevance_assets.statistics.brain_age import brain_age_gap as gap

    rows = out_of_sample(predictions.filter(pl.col("model") == workspace.study.network.name))
    return gap(rows.select("scan", "set", pl.col("target").alias("age"), pl.col("output").alias("predicted_age")))
