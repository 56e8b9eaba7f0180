"""Stages that judge masks over the cohort: the study's network against the truth, and sources against each other.

Belongs here: which rows go in, and what is shown of what comes out. Does not belong here: the statistics
(`statistics/segmentation.py`), measures of one scan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.mask_sources import load_labels, native_image, source_names
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["mask_agreement_stages"]

FIGURES = ("segmentationScores", "segmentationMedian", "segmentationLowest")


def mask_agreement_stages(workspace: Workspace) -> list[Stage]:
    stages = [_segmentation_summary(workspace)] if workspace.study.segmentation else []
    return stages + ([_source_agreement(workspace)] if len(source_names(workspace)) > 1 else [])


# -------------------------------------------------------------------------------------------- segmentation_summary
def _segmentation_summary(workspace: Workspace) -> Stage:
    study, settings = workspace.study, workspace.study.segmentation
    assert settings is not None
    figures = {name: workspace.figure_path(name) for name in FIGURES}

    def inputs(_: str) -> Any:
        scored = set(workspace.read("segmentation_scores")["scan"])
        results = {scan: result for scan, result in workspace.results("segmentations").items() if scan in scored}
        if not results:
            raise NotReady(f"no scan with masks of {settings.learn_from} is segmented yet: segmentations")
        return [results, study.statistics.model_dump(mode="json")]

    def make(_: str) -> Done:
        from relevance_assets.assets.metadata import picture
        from relevance_assets.report.figures import save, thumbnail
        from relevance_assets.statistics.segmentation import summary

        scores, counts = workspace.read("segmentation_scores"), workspace.read("segmentation_counts")
        frame = summary(scores, counts, study.statistics)
        shown = frame.filter((pl.col("metric") == "dice") & (pl.col("class") != "all"))
        drawn = dict(_figures(workspace, scores))
        for name, path in figures.items():
            path.unlink(missing_ok=True)
            if name in drawn:
                save(drawn[name], path)
        return Done(
            tables={"segmentation_summary": frame},
            result=fingerprint(frame.rows()),
            metadata={
                f"dice_{row['class']}_{row['form']}": round(row["value"], 3)
                for row in shown.drop_nulls("value").iter_rows(named=True)
            }
            | {"scans": scores["scan"].n_unique()}
            | {name: picture(thumbnail(figure), name) for name, figure in drawn.items()},
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
        kinds=frozenset({"polars", "matplotlib"}),
        group="statistics",
    )


def _figures(workspace: Workspace, scores: pl.DataFrame) -> Iterator[tuple[str, Figure]]:
    """All scans, and slices of the scans whose lesions were found in the middle and the worst way."""
    from relevance_assets.report.figures_segmentation import segmentation_figure

    wide = scores.filter(pl.col("metric").is_in(["dice", "volume_difference_mm3"])).pivot(
        "metric", index=["scan", "class"], values="value"
    )
    volumes = workspace.read("segmentations").select("scan", "class", found_mm3="volume_mm3")
    joined = wide.join(volumes, on=["scan", "class"])
    scans = joined.with_columns(true_mm3=pl.col("found_mm3") - pl.col("volume_difference_mm3"))
    yield FIGURES[0], segmentation_figure(scans.sort("scan", "class"))
    ranked = scans.filter(pl.col("class") == "wmh").drop_nulls("dice").sort("dice", "scan")
    places = [len(ranked) // 2, 0] if len(ranked) > 1 else [0] * len(ranked)
    for name, word, place in zip(FIGURES[1:], ("median", "lowest"), places, strict=False):
        row = ranked.row(place, named=True)
        title = f"{row['scan']}: lesions found with Dice {row['dice']:.2f}, the {word} of {len(ranked)} scans"
        yield name, _overlap(workspace, row["scan"], title)


def _overlap(workspace: Workspace, scan: str, title: str) -> Figure:
    from relevance_assets.report.figures_lesions import overlap_figure

    settings = workspace.study.segmentation
    assert settings is not None
    flair, brain = native_image(workspace, scan)
    found, truth = (load_labels(workspace, scan, name, flair) for name in (settings.name, settings.learn_from))
    return overlap_figure(flair.data, found, truth, flair.affine, title, brain)


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
