"""Stages of the networks: one model per fold, what each says of every scan, and how good that is.

Belongs here: the stages `trained_models`, `predictions` and `scores`, and who may be explained by which model. Does not
belong here: training itself (`training/`), measures of quality (`statistics/scores.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, Work, each, tick
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint, sha256

if TYPE_CHECKING:
    from relevance_assets.training.data import Samples
    from relevance_assets.training.predict import Predictor

__all__ = ["model_hash", "model_stages", "models_for", "people", "predictors", "role_of", "samples", "trained_models"]


def model_stages(workspace: Workspace) -> list[Stage]:
    return [trained_models(workspace), _predictions(workspace), _scores(workspace)]


def folds(workspace: Workspace) -> list[str]:
    """One of a study of slices, whose split has one validation set."""
    return ["0"] if workspace.study.slices else [str(fold) for fold in range(workspace.study.split.folds)]


def models_for(workspace: Workspace, scan: str) -> list[str]:
    """The folds whose models never saw this scan: its own fold's, or every fold's for a test scan or a new one."""
    _, fold = side_of(workspace, scan)
    return folds(workspace) if fold is None else [str(fold)]


def side_of(workspace: Workspace, scan: str) -> tuple[str, int | None]:
    """Set and fold of a scan in the split; NotReady where it is in none."""
    side = workspace.sides.get(scan)
    if side is None:
        raise NotReady(f"{scan}: not in the splits")
    return side


def model_hash(workspace: Workspace, fold: str) -> str:
    """SHA-256 of a fold's checkpoint; NotReady where it is not trained."""
    return upstream(workspace, "trained_models", fold)


def people(workspace: Workspace, scans: list[str]) -> pl.DataFrame:
    """Rows of `scans` with the study's columns as numbers, in the order asked for; `other` columns unpacked."""
    from relevance_assets.cohort.participants import column_values

    frame = workspace.read("scans").filter(pl.col("scan").is_in(scans))
    wanted = {covariate.column for covariate in workspace.study.cohort.covariates}
    wanted |= {workspace.study.statistics.correlate_with or "target"}
    for column in sorted(wanted - set(frame.columns)):
        frame = frame.with_columns(column_values(frame, column).alias(column))
    order = pl.DataFrame({"scan": scans}, schema={"scan": pl.String})
    return order.join(frame, on="scan", how="left", maintain_order="left")


def person(workspace: Workspace, scan: str, columns: list[str]) -> tuple[Any, ...] | None:
    """What is known of a scan's person, as `people` gives it; None for a scan that is not in the cohort."""

    def build(frame: pl.DataFrame) -> dict[str, tuple[Any, ...]]:
        scans = frame["scan"].to_list()
        return dict(zip(scans, people(workspace, scans).select(columns).rows(), strict=True))

    return workspace.derived("scans", ("person", *columns), build).get(scan)


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
    threshold = study.target.threshold
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
def trained_models(workspace: Workspace) -> Stage:
    study = workspace.study

    def divided(fold: str) -> pl.DataFrame:
        """Scan, person and role of all that a fold's model learns from, sorted by scan."""
        validates = pl.col("fold") == int(fold)
        role = pl.when(validates).then(pl.lit("validation")).otherwise(pl.lit("train"))
        frame = workspace.read("splits").filter(pl.col("set") == "train").sort("scan")
        return frame.select("scan", "participant_id", role.alias("set"))

    def inputs(fold: str) -> Any:
        upstream(workspace, "splits", ALL)
        frame = divided(fold)
        scans = frame["scan"].to_list()
        columns = ["target", *sorted({covariate.column for covariate in study.cohort.covariates})]
        volumes = workspace.results("prepared_volumes")
        return [
            fold,
            frame.rows(),
            [volumes.get(scan) for scan in scans],
            people(workspace, scans).select(columns).rows(),
            *([start_hash(workspace, fold)] if study.training.start_from else []),
            *([sha256(weights)] if (weights := _weights(workspace)) else []),
        ]

    def make(fold: str) -> Done:
        from relevance_assets.training.fit import fit

        frame = divided(fold)
        start = None
        if study.training.start_from:
            _check_unseen(workspace, fold, frame)
            start = workspace.home.model(study.training.start_from, int(fold)) / "model.pt"
        sets = {name: frame.filter(pl.col("set") == name)["scan"].to_list() for name in ("train", "validation")}
        fitted = fit(
            study.network,
            study.training,
            study.target,
            samples(workspace, sets["train"]),
            samples(workspace, sets["validation"]),
            workspace.home.model(study.name, int(fold)),
            fold=int(fold),
            start=start,
            progress=lambda epoch, epochs, metrics: tick(epoch / epochs, f"fold {fold}, epoch {epoch} of {epochs}"),
        )
        key = {"model": study.network.name, "fold": fold}
        keyed = {name: pl.lit(value) for name, value in key.items()}
        model = {
            "path": workspace.relative(fitted.checkpoint),
            "sha256": fitted.sha256,
            "parameters": fitted.parameters,
            "device": fitted.device,
            "seconds": fitted.seconds,
            "seed": fitted.seed,
            "best_epoch": fitted.best_epoch,
        }
        best = fitted.epochs.filter(pl.col("epoch") == fitted.best_epoch)
        return Done(
            tables={
                "models": pl.DataFrame([key | model]),
                "training_epochs": fitted.epochs.with_columns(**keyed),
                "training_scans": frame.with_columns(**keyed),
            },
            result=fitted.sha256,
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
        version="2",
        description="One network per fold, best epoch by the validation measure. Trained when there is none, or when "
        "somebody asks; scans that come later are predicted and explained by the models there are.",
        tables=("models", "training_epochs", "training_scans"),
        items=lambda: folds(workspace),
        settings=[
            study.network.model_dump(mode="json"),
            study.training.decisive(),
            study.target.model_dump(mode="json"),
            [step.model_dump(mode="json") for step in study.preparation],
            [contrast.model_dump(mode="json") for contrast in study.contrasts],
        ],
        inputs=inputs,
        work=each(make),
        outputs=lambda fold: [workspace.home.model(study.name, int(fold)) / "model.pt"],
        partition="fold",
        needs=("splits", "prepared_volumes"),
        kinds=frozenset({"pytorch"}),
        group="model",
        pool="gpu",
    )


def _weights(workspace: Workspace) -> Path | None:
    """The file that the network begins with, where the study names one that is there."""
    path = Path(workspace.study.network.options.get("weights") or "")
    return path if path.is_file() else None


def start_hash(workspace: Workspace, fold: str) -> str:
    """SHA-256 of the other study's model that training begins with; NotReady where it is not trained."""
    other = workspace.study.training.start_from
    models = workspace.store.read("models", other).filter(pl.col("fold") == fold)
    if models.is_empty():
        raise NotReady(f"fold {fold}: training.start_from: {other} has no such model; run {other} first")
    return models["sha256"][0]


def _check_unseen(workspace: Workspace, fold: str, divided: pl.DataFrame) -> None:
    """Raise ValueError where a model that training begins with knows people who are to be new to this one."""
    other = workspace.study.training.start_from
    seen = workspace.store.read("training_scans", other).filter(pl.col("fold") == fold)
    test = workspace.read("splits").filter(pl.col("set") == "test")["participant_id"]
    held = divided.filter(pl.col("set") == "validation")["participant_id"]
    learnt = seen.filter(pl.col("set") == "train")["participant_id"]
    # to have chosen an epoch by them is as bad for test people as to have learnt from them
    known = sorted((set(held) & set(learnt)) | (set(test) & set(seen["participant_id"])))
    if known:
        raise ValueError(
            f"fold {fold}: training.start_from: {other} was trained on {known[0]}"
            f"{f' and {len(known) - 1} more' if len(known) > 1 else ''}, who validate or test here; give both studies "
            "the same people and the same split"
        )


# ----------------------------------------------------------------------------------------------------- predictions
def _predictions(workspace: Workspace) -> Stage:
    study = workspace.study

    def inputs(scan: str) -> Any:
        columns = ["target", *sorted({covariate.column for covariate in study.cohort.covariates})]
        return [
            upstream(workspace, "prepared_volumes", scan),
            {fold: model_hash(workspace, fold) for fold in folds(workspace)},
            side_of(workspace, scan),
            person(workspace, scan, columns),
        ]

    @contextmanager
    def work() -> Iterator[Work]:
        with predictors(workspace) as model:
            yield lambda scan: make(scan, model)

    def make(scan: str, model: Callable[[str], Predictor]) -> Done:
        import numpy as np

        sample = samples(workspace, [scan])
        names = [contrast.name for contrast in study.contrasts]
        rows: list[dict[str, Any]] = []
        weights: list[dict[str, Any]] = []
        for fold in folds(workspace):
            said = model(fold)(sample, 1)  # one at a time: a batch's neighbours would show in the last bits
            key = {"model": study.network.name, "fold": fold, "scan": scan}
            output = float(said.outputs[0])
            row = key | {"set": role_of(workspace, scan, fold), "target": float(sample.targets[0]), "output": output}
            binary = study.target.kind == "binary"
            rows.append(row | {"probability": float(1 / (1 + np.exp(-output))) if binary else None})
            if said.attention is not None:
                found = zip(names, said.attention[0].tolist(), strict=True)
                weights += [key | {"contrast": name, "weight": weight} for name, weight in found]
        frame = pl.DataFrame(rows, schema_overrides={"probability": pl.Float64})
        tables = {"predictions": frame} | ({"attention_weights": pl.DataFrame(weights)} if weights else {})
        unseen = frame.filter(pl.col("set") != "train")
        return Done(
            tables=tables,
            result=fingerprint(frame.rows(), weights),
            metadata={"output": unseen["output"].mean(), "target": rows[0]["target"], "set": unseen["set"][0]},
        )

    return Stage(
        name="predictions",
        version="1",
        description="What each fold's model says of a scan and, where it has attention, how it weighs the contrasts.",
        tables=("predictions", "attention_weights"),
        items=lambda: sorted(workspace.sides),
        inputs=inputs,
        work=work,
        partition="scan",
        parallel=True,
        needs=("prepared_volumes", "splits", "trained_models"),
        kinds=frozenset({"pytorch"}),
        group="model",
        pool="gpu",
    )


@contextmanager
def predictors(workspace: Workspace) -> Iterator[Callable[[str], Predictor]]:
    """Each fold's model, opened when it is first asked for."""
    from relevance_assets.precision import one_thread
    from relevance_assets.training.predict import Predictor

    opened: dict[str, Predictor] = {}

    def model(fold: str) -> Predictor:
        if fold not in opened:
            path = workspace.home.model(workspace.study.name, int(fold)) / "model.pt"
            opened[fold] = Predictor(path)
        return opened[fold]

    with one_thread():
        yield model


def role_of(workspace: Workspace, scan: str, fold: str) -> str:
    """What a scan is to a fold's model: `train`, `validation`, `test` or `new`."""
    side, validated_in = side_of(workspace, scan)
    if side != "train":
        return side
    return "validation" if validated_in == int(fold) else "train"


# ---------------------------------------------------------------------------------------------------------- scores
def _scores(workspace: Workspace) -> Stage:
    study = workspace.study

    def inputs(_: str) -> Any:
        said = workspace.results("predictions")
        if not said:
            raise NotReady("no prediction yet: predictions")
        people_of = workspace.read("scans").filter(pl.col("scan").is_in(list(said))).select("scan", "participant_id")
        return [
            said,
            people_of.rows(),
            study.statistics.model_dump(mode="json"),
            study.target.model_dump(mode="json"),
        ]

    def make(_: str) -> Done:
        from relevance_assets.assets.baselines import baseline_predictions
        from relevance_assets.assets.scoring import brain_age_gap, score_table
        from relevance_assets.statistics.attention import attention_summary
        from relevance_assets.statistics.brain_age import age_dependence

        predictions = workspace.read("predictions").filter(pl.col("model") == study.network.name)
        tables, extra = {}, {}
        if study.statistics.ridge_voxel_size_mm is not None:
            tick(0.1, "baselines")
            predictions = pl.concat([predictions, baseline_predictions(workspace)], how="diagonal_relaxed")
        tick(0.6, "scores")
        tables["scores"] = score_table(workspace, predictions)
        weights = workspace.read("attention_weights").filter(pl.col("model") == study.network.name)
        if weights.height and study.target.kind == "binary":
            tables["attention_summary"] = attention_summary(
                weights,
                predictions,
                workspace.read("scans").select("scan", "participant_id"),
                bootstrap=study.statistics.bootstrap,
                confidence=study.statistics.confidence,
                seed=study.statistics.seed,
            )
        if study.target.column == "age":
            tables["brain_age_gap"] = brain_age_gap(workspace, predictions)
            left = age_dependence(tables["brain_age_gap"]).filter(pl.col("set") == "test")
            extra = {f"test_{name}": left[name][0] for name in ("r_gap", "r_corrected_gap") if left.height}
        test = tables["scores"].filter(
            (pl.col("model") == study.network.name) & (pl.col("set") == "test") & (pl.col("fold") == "ensemble")
        )
        return Done(
            tables=tables,
            result=fingerprint([tables[name].rows() for name in ("scores", "attention_summary") if name in tables]),
            metadata={f"test_{metric}": value for metric, value in test.select("metric", "value").iter_rows()} | extra,
        )

    return Stage(
        name="scores",
        version="2",
        description="How good the predictions are, per set, with bootstrap intervals over people; beside baselines on "
        "the same split. How the contrasts are weighed where the model is right.",
        tables=("scores", "brain_age_gap", "attention_summary"),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("predictions",),
        kinds=frozenset({"scipy", "polars"}),
        group="statistics",
    )
