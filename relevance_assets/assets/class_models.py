"""Stages of a network of classes: what it says of every slice, and how good that is.

Belongs here: `predictions` and `scores` of a study of slices. Does not belong here: training (`models.py`), measures
(`statistics/class_scores.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.models import model_hash, predictors, role_of, samples
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, Work, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint

if TYPE_CHECKING:
    from relevance_assets.training.predict import Predictor

__all__ = ["FOLD", "class_model_stages"]

FOLD = "0"  # the one model


def class_model_stages(workspace: Workspace) -> list[Stage]:
    return [_predictions(workspace), _scores(workspace)]


def _predictions(workspace: Workspace) -> Stage:
    study = workspace.study
    classes = study.target.classes

    def inputs(scan: str) -> Any:
        side = workspace.sides.get(scan)
        return [upstream(workspace, "prepared_volumes", scan), model_hash(workspace, FOLD), side]

    @contextmanager
    def work() -> Iterator[Work]:
        with predictors(workspace) as model:
            yield lambda scan: make(scan, model)

    def make(scan: str, model: Callable[[str], Predictor]) -> Done:
        import numpy as np

        sample = samples(workspace, [scan])
        logits = model(FOLD)(sample, 1).outputs[0]
        shares = np.exp(logits - logits.max())
        role = role_of(workspace, scan, FOLD)
        truth, said = classes[int(sample.targets[0])], classes[int(logits.argmax())]
        rows = {"class": classes, "logit": logits, "probability": shares / shares.sum()}
        frame = pl.DataFrame(rows).with_columns(
            model=pl.lit(study.network.name), fold=pl.lit(FOLD), scan=pl.lit(scan), set=pl.lit(role)
        )
        frame = frame.with_columns(is_true=pl.col("class") == truth, is_predicted=pl.col("class") == said)
        return Done(
            tables={"class_predictions": frame},
            result=fingerprint(frame.rows()),
            metadata={"class": truth, "predicted": said, "set": role},
        )

    return Stage(
        name="predictions",
        version="slices-1",
        description="What the network says of a slice: a logit and a probability for each class.",
        tables=("class_predictions",),
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


def _scores(workspace: Workspace) -> Stage:
    study = workspace.study
    classes = study.target.classes

    def inputs(_: str) -> Any:
        said = workspace.results("predictions")
        if not said:
            raise NotReady("no prediction yet: predictions")
        return [said, study.statistics.model_dump(mode="json")]

    def make(_: str) -> Done:
        from relevance_assets.statistics.class_scores import class_scores, confusion

        wide = workspace.read("class_predictions").pivot("class", index=["scan", "set"], values="logit")
        truth = workspace.known_scans().select("scan", "participant_id", "target")
        parts, counts = [], []
        for (name,), rows in wide.join(truth, on="scan").sort("scan").group_by("set", maintain_order=True):
            target, output = rows["target"].to_numpy().astype(int), rows.select(classes).to_numpy()
            measured = class_scores(
                target,
                output,
                classes,
                participants=rows["participant_id"].to_list(),
                bootstrap=study.statistics.bootstrap,
                confidence=study.statistics.confidence,
                seed=study.statistics.seed,
            )
            metric = pl.concat_str("metric", "class", separator="_", ignore_nulls=True)
            parts.append(measured.with_columns(metric=metric, set=pl.lit(name)).drop("class"))
            counted = confusion(target, output, classes).with_columns(set=pl.lit(name))
            counts.append(counted.rename({"true": "true_class", "predicted": "predicted_class"}))
        key = {"model": pl.lit(study.network.name), "fold": pl.lit(FOLD)}
        scores = pl.concat(parts).with_columns(**key)
        test = scores.filter(set="test")
        return Done(
            tables={"scores": scores, "confusion": pl.concat(counts).with_columns(**key)},
            result=fingerprint(scores.rows()),
            metadata={f"test_{metric}": value for metric, value in test.select("metric", "value").iter_rows()},
        )

    return Stage(
        name="scores",
        version="slices-1",
        description="How good the classes are told apart, per set, with intervals over people; the confusion matrix.",
        tables=("scores", "confusion"),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("predictions",),
        kinds=frozenset({"polars"}),
        group="statistics",
    )
