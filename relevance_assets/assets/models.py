"""Stages of the networks: one model per fold, what each says of every scan, and how good that is.

Belongs here: the stages `trained_models` and `scores`, and who may be explained by which model. Does not belong here:
training itself (`training/`), measures of quality (`statistics/scores.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each, tick
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint

if TYPE_CHECKING:
    from relevance_assets.training.data import Samples

__all__ = ["model_stages", "models_for", "samples"]


def model_stages(workspace: Workspace) -> list[Stage]:
    return [_trained_models(workspace), _scores(workspace)]


def folds(workspace: Workspace) -> list[str]:
    return [str(fold) for fold in range(workspace.study.split.folds)]


def models_for(workspace: Workspace, scan: str) -> list[str]:
    """The folds whose models never saw this scan: its own fold's, or every fold's for a test scan."""
    row = workspace.read("splits").filter(pl.col("scan") == scan)
    if row.is_empty():
        raise NotReady(f"{scan}: not in the splits")
    fold = row["fold"][0]
    return folds(workspace) if fold is None else [str(fold)]


def people(workspace: Workspace, scans: list[str]) -> pl.DataFrame:
    """Rows of `scans` with the study's columns as numbers, in the order asked for; `other` columns unpacked."""
    from relevance_assets.cohort.participants import column_values

    frame = workspace.read("scans").filter(pl.col("scan").is_in(scans))
    wanted = {covariate.column for covariate in workspace.study.cohort.covariates}
    wanted |= {workspace.study.statistics.correlate_with or "target"}
    for column in sorted(wanted - set(frame.columns)):
        frame = frame.with_columns(column_values(frame, column).alias(column))
    order = pl.DataFrame({"scan": scans})
    return order.join(frame, on="scan", how="left", maintain_order="left")


def samples(workspace: Workspace, scans: list[str]) -> Samples:
    """Prepared images, covariates, targets and weights of these scans, for training or prediction.

    Raises
    ------
    ValueError
        Where a covariate is missing: named with the scan.
    """
    import numpy as np

    from relevance_assets.training.data import Samples
    from relevance_assets.training.losses import edss_weight

    study = workspace.study
    frame = people(workspace, scans)
    covariates = np.zeros((len(scans), len(study.cohort.covariates)), dtype=np.float32)
    for index, covariate in enumerate(study.cohort.covariates):
        values = frame[covariate.column]
        if values.null_count():
            missing = frame.filter(pl.col(covariate.column).is_null())["scan"][0]
            raise ValueError(
                f"{missing}: no {covariate.column} in participants.tsv or sessions.tsv; fill it or exclude"
            )
        covariates[:, index] = values.to_numpy() / covariate.divide_by
    raw = frame["target"].to_numpy()
    threshold = study.cohort.target.threshold
    targets = raw if threshold is None else (raw >= threshold)
    weights = edss_weight(raw) if study.training.sample_weight == "edss" else np.ones(len(scans))
    return Samples(
        scans=tuple(scans),
        images=tuple(workspace.prepared_paths(scan) for scan in scans),
        covariates=covariates,
        targets=targets.astype(np.float32),
        weights=weights.astype(np.float32),
    )


# --------------------------------------------------------------------------------------------------- trained_models
def _trained_models(workspace: Workspace) -> Stage:
    study = workspace.study

    def inputs(fold: str) -> Any:
        splits = upstream(workspace, "splits", ALL)
        scans = workspace.read("splits").sort("scan")["scan"].to_list()
        columns = ["target", *sorted({covariate.column for covariate in study.cohort.covariates})]
        values = people(workspace, scans).select(columns).rows()
        return [
            fold,
            splits,
            workspace.results("prepared_volumes", items=scans),
            values,
            study.model.model_dump(mode="json"),
            study.training.model_dump(mode="json"),
            study.cohort.target.model_dump(mode="json"),
        ]

    def make(fold: str) -> Done:
        import numpy as np

        from relevance_assets.training.checkpoint import load
        from relevance_assets.training.fit import fit
        from relevance_assets.training.predict import predict

        frame = workspace.read("splits").sort("scan")
        role = (
            pl.when(pl.col("set") == "test")
            .then(pl.lit("test"))
            .when(pl.col("fold") == int(fold))
            .then(pl.lit("validation"))
            .otherwise(pl.lit("train"))
        )
        frame = frame.with_columns(role.alias("role"))
        sets = {name: frame.filter(pl.col("role") == name)["scan"].to_list() for name in ("train", "validation")}
        fitted = fit(
            study.model,
            study.training,
            study.cohort.target,
            samples(workspace, sets["train"]),
            samples(workspace, sets["validation"]),
            workspace.home.model(study.name, int(fold)),
            fold=int(fold),
            progress=lambda epoch, epochs, metrics: tick(epoch / epochs, f"fold {fold}, epoch {epoch} of {epochs}"),
        )
        everyone = samples(workspace, frame["scan"].to_list())
        said = predict(load(fitted.checkpoint), everyone, study.training.batch_size)
        binary = study.cohort.target.kind == "binary"
        key = {"model": study.model.name, "fold": fold}
        predictions = frame.select("scan", pl.col("role").alias("set")).with_columns(
            **{name: pl.lit(value) for name, value in key.items()},
            target=pl.Series(everyone.targets.astype(np.float64)),
            output=pl.Series(said.outputs),
            probability=pl.Series(1 / (1 + np.exp(-said.outputs))) if binary else pl.lit(None, pl.Float64),
        )
        tables = {
            "models": pl.DataFrame(
                [
                    key
                    | {
                        "path": workspace.relative(fitted.checkpoint),
                        "sha256": fitted.sha256,
                        "parameters": fitted.parameters,
                        "device": fitted.device,
                        "seconds": fitted.seconds,
                        "seed": fitted.seed,
                        "best_epoch": fitted.best_epoch,
                    }
                ]
            ),
            "training_epochs": fitted.epochs.with_columns(**{name: pl.lit(value) for name, value in key.items()}),
            "predictions": predictions,
        }
        if said.attention is not None:
            names = [contrast.name for contrast in study.contrasts]
            wide = pl.DataFrame(said.attention, schema=names, orient="row").with_columns(scan=frame["scan"])
            long = wide.unpivot(names, index="scan", variable_name="contrast", value_name="weight")
            tables["attention_weights"] = long.with_columns(**{name: pl.lit(value) for name, value in key.items()})
        best = fitted.epochs.filter(pl.col("epoch") == fitted.best_epoch)
        return Done(
            tables=tables,
            result=fingerprint(fitted.sha256, predictions.select("scan", "target", "output").rows()),
            metadata={
                "parameters": fitted.parameters,
                "device": fitted.device,
                "best_epoch": fitted.best_epoch,
                f"validation_{study.training.monitor}": best["validation_metric"][0],
                "seconds": round(fitted.seconds, 1),
                "scans_train": len(sets["train"]),
                "scans_validation": len(sets["validation"]),
            },
        )

    return Stage(
        name="trained_models",
        version="1",
        description="One network per fold, best epoch by the validation measure, with what it says of every scan "
        "(tables predictions and attention_weights).",
        tables=("models", "training_epochs", "predictions", "attention_weights"),
        items=lambda: folds(workspace),
        inputs=inputs,
        work=each(make),
        outputs=lambda fold: [workspace.home.model(study.name, int(fold)) / "model.pt"],
        partition="fold",
        needs=("splits", "prepared_volumes"),
        kinds=frozenset({"pytorch"}),
        group="model",
        pool="gpu",
    )


# ---------------------------------------------------------------------------------------------------------- scores
def _scores(workspace: Workspace) -> Stage:
    study = workspace.study

    def inputs(_: str) -> Any:
        models = {fold: upstream(workspace, "trained_models", fold) for fold in folds(workspace)}
        return [models, study.statistics.model_dump(mode="json"), study.cohort.target.model_dump(mode="json")]

    def make(_: str) -> Done:
        from relevance_assets.assets.baselines import baseline_predictions
        from relevance_assets.assets.scoring import brain_age_gap, score_table
        from relevance_assets.statistics.brain_age import age_dependence

        predictions = workspace.read("predictions").filter(pl.col("model") == study.model.name)
        tables, extra = {}, {}
        if study.statistics.ridge_voxel_size_mm is not None:
            tick(0.1, "baselines")
            predictions = pl.concat([predictions, baseline_predictions(workspace)], how="diagonal_relaxed")
        tick(0.6, "scores")
        tables["scores"] = score_table(workspace, predictions)
        if study.cohort.target.column == "age":
            tables["brain_age_gap"] = brain_age_gap(workspace, predictions)
            left = age_dependence(tables["brain_age_gap"]).filter(pl.col("set") == "test")
            extra = {f"test_{name}": left[name][0] for name in ("r_gap", "r_corrected_gap") if left.height}
        test = tables["scores"].filter(
            (pl.col("model") == study.model.name) & (pl.col("set") == "test") & (pl.col("fold") == "ensemble")
        )
        return Done(
            tables=tables,
            result=fingerprint(tables["scores"].rows()),
            metadata={f"test_{metric}": value for metric, value in test.select("metric", "value").iter_rows()} | extra,
        )

    return Stage(
        name="scores",
        version="1",
        description="How good the predictions are, per set, with bootstrap intervals over people; beside baselines on "
        "the same split.",
        tables=("scores", "brain_age_gap"),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("trained_models",),
        kinds=frozenset({"scipy", "polars"}),
        group="statistics",
    )
