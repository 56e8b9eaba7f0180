"""Stages that judge masks over the cohort: the study's network against the truth, and sources against each other.

Belongs here: which rows go in, and what is shown of what comes out. Does not belong here: the statistics
(`statistics/segmentation.py`), measures of one scan.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from relevance_assets.assets.mask_sources import source_names
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint

__all__ = ["mask_agreement_stages"]


def mask_agreement_stages(workspace: Workspace) -> list[Stage]:
    stages = [_segmentation_summary(workspace)] if workspace.study.segmentation else []
    return stages + ([_source_agreement(workspace)] if len(source_names(workspace)) > 1 else [])


# -------------------------------------------------------------------------------------------- segmentation_summary
def _segmentation_summary(workspace: Workspace) -> Stage:
    study, settings = workspace.study, workspace.study.segmentation
    assert settings is not None

    def inputs(_: str) -> Any:
        scored = set(workspace.read("segmentation_scores")["scan"])
        results = {scan: result for scan, result in workspace.results("segmentations").items() if scan in scored}
        if not results:
            raise NotReady(f"no scan with masks of {settings.learn_from} is segmented yet: segmentations")
        return [results, study.statistics.model_dump(mode="json")]

    def make(_: str) -> Done:
        from relevance_assets.statistics.segmentation import summary

        scores, counts = workspace.read("segmentation_scores"), workspace.read("segmentation_counts")
        frame = summary(scores, counts, study.statistics)
        shown = frame.filter((pl.col("metric") == "dice") & (pl.col("class") != "all"))
        return Done(
            tables={"segmentation_summary": frame},
            result=fingerprint(frame.rows()),
            metadata={
                f"dice_{row['class']}_{row['form']}": round(row["value"], 3)
                for row in shown.drop_nulls("value").iter_rows(named=True)
            }
            | {"scans": scores["scan"].n_unique()},
        )

    return Stage(
        name="segmentation_summary",
        version="1",
        description="How good the networks are on people they never saw: means over scans with intervals over people, "
        "and the published form, pooled over all pixels.",
        tables=("segmentation_summary",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("segmentations",),
        kinds=frozenset({"polars"}),
        group="statistics",
    )


# ------------------------------------------------------------------------------------------------ source_agreement
def _source_agreement(workspace: Workspace) -> Stage:
    study = workspace.study

    def inputs(_: str) -> Any:
        results = workspace.results("lesions")
        if not results:
            raise NotReady("no lesions measured yet: lesions")
        return [results, source_names(workspace), study.statistics.model_dump(mode="json")]

    def make(_: str) -> Done:
        from relevance_assets.statistics.segmentation import source_agreement

        frame = source_agreement(workspace.read("lesion_burden"), source_names(workspace), study.statistics)
        assert study.lesions is not None
        shown = frame.filter((pl.col("rule") == study.lesions.rule) & pl.col("pearson").is_not_null())
        return Done(
            tables={"source_agreement": frame},
            result=fingerprint(frame.rows()),
            metadata={
                f"r_{row['source_a']}_{row['source_b']}_{row['zone']}": round(row["pearson"], 3)
                for row in shown.iter_rows(named=True)
            }
            | {"scans": frame["n"].max() or 0},
        )

    return Stage(
        name="source_agreement",
        version="1",
        description="How far two sources of masks find the same lesion volumes in the same zones, over the scans that "
        "both have.",
        tables=("source_agreement",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("lesions",),
        kinds=frozenset({"polars"}),
        group="statistics",
    )
