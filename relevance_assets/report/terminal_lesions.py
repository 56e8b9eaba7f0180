"""What the command line prints of a study of lesions.

Belongs here: choosing and formatting. Does not belong here: computing anything new, tables of other studies
(`terminal.py`).
"""

from __future__ import annotations

from typing import Any

import polars as pl
from rich.console import RenderableType

from relevance_assets.report.tables import interval, table
from relevance_assets.study import Study
from relevance_assets.tables.store import Store

__all__ = ["LESION_PARTS"]

ZONES = ("all", "periventricular", "paraventricular", "juxtacortical")
SHOWN = ("dice", "precision", "recall", "hd95_mm", "lesion_f1")  # of the measures of a segmentation


def _burden(study: Study, store: Store) -> RenderableType | None:
    """By source and zone, over scans."""
    assert study.lesions is not None
    frame = store.read("lesion_burden", study.name).filter(pl.col("rule") == study.lesions.rule)
    if frame.is_empty():
        return None
    found = frame.group_by("source", "zone").agg(
        scans=pl.len(),
        some=(pl.col("count") > 0).sum(),
        lesions=pl.col("count").sum(),
        median=pl.col("volume_mm3").median() / 1000,
        most=pl.col("volume_mm3").max() / 1000,
    )
    order = {zone: place for place, zone in enumerate(ZONES)}
    rows = sorted(found.iter_rows(named=True), key=lambda row: (row["source"], order[row["zone"]]))
    return table(
        f"Lesions by zone (rule {study.lesions.rule})",
        ["masks", "zone", "lesions", "median ml", "most ml", "scans with any", "scans"],
        [[row[name] for name in ("source", "zone", "lesions", "median", "most", "some", "scans")] for row in rows],
        right_from=2,
    )


def _agreement(study: Study, store: Store) -> RenderableType | None:
    frame = store.read("zone_agreement", study.name)
    if frame.is_empty():
        return None
    found = (
        frame.sort("source", "rule_a", "rule_b")
        .group_by("source", "rule_a", "rule_b", maintain_order=True)
        .agg(
            equal=((pl.col("equal") * pl.col("voxels")).sum() / pl.col("voxels").sum()).fill_nan(None),
            kappa=pl.col("kappa").median(),
            scans=pl.col("equal").count(),
        )
    )
    return table(
        "Do the rules agree?",
        ["masks", "rule", "and rule", "same zone", "median kappa", "scans"],
        [[row[name] for name in found.columns] for row in found.iter_rows(named=True)],
        right_from=3,
    )


def _segmentation(study: Study, store: Store) -> RenderableType | None:
    """Of the study's own networks: means over scans, and the published form beside them."""
    frame = store.read("segmentation_summary", study.name)
    if frame.is_empty():
        return None
    assert study.segmentation is not None
    key = ["class", "metric"]
    means = frame.filter((pl.col("form") == "mean_over_scans") & pl.col("metric").is_in(SHOWN))
    pooled = frame.filter(pl.col("form") == "pooled_as_published").select(*key, pooled="value")
    return table(
        f"Networks against {study.segmentation.learn_from}, on people they never saw",
        ["class", "measure", "mean", "95 %", "scans", "pooled, as published"],
        [
            [*(row[name] for name in (*key, "value")), interval(row), row["n"], row["pooled"]]
            for row in means.join(pooled, on=key, how="left", maintain_order="left").iter_rows(named=True)
        ],
        right_from=2,
    )


def _sources(study: Study, store: Store) -> RenderableType | None:
    """How far sources of masks agree, by the study's rule."""
    assert study.lesions is not None
    frame = store.read("source_agreement", study.name).filter(pl.col("rule") == study.lesions.rule)
    if frame.is_empty():
        return None
    places = {zone: place for place, zone in enumerate(ZONES)}
    rows = sorted(frame.iter_rows(named=True), key=lambda row: (row["source_a"], row["source_b"], places[row["zone"]]))
    return table(
        f"Do the masks agree on volumes? (rule {study.lesions.rule})",
        ["masks", "zone", "r", "Lin's c", "95 %", "bias, ml", "scans"],
        [
            [
                f"{row['source_a']}, {row['source_b']}",
                *(row[name] for name in ("zone", "pearson", "concordance")),
                interval(row),
                row["difference_mm3"] / 1000,
                row["n"],
            ]
            for row in rows
        ],
        right_from=2,
    )


def _groups(study: Study, store: Store) -> RenderableType | None:
    """Sound comparisons of everybody, and the adjusted factors."""
    frame = store.read("group_comparisons", study.name).filter(
        (pl.col("analysis") == "groups")
        & (pl.col("variant") == "all")
        & (pl.col("test") == "mann_whitney")
        & pl.col("measure").str.ends_with("_ratio")
    )
    if frame.is_empty():
        return None
    first = frame.row(0, named=True)
    groups = [first["group_a"], first["group_b"]]
    rows = [
        [row["measure"].removesuffix("_ratio"), row["n_a"], row["n_b"], row["effect"], interval(row), _p(row)]
        for row in frame.sort("measure").iter_rows(named=True)
    ]
    title = f"{groups[1]} against {groups[0]}, {first['effect_name']}; zones: as shares of a person's lesions"
    return table(title, ["measure", *groups, "effect", "95 % interval", "p (Holm)"], rows)


def _p(row: dict[str, Any]) -> str:
    return "–" if row["p_corrected"] is None else f"{row['p_corrected']:.2g}"


def _published(study: Study, store: Store) -> RenderableType | None:
    frame = store.read("published_comparison", study.name).filter("comparable")
    if frame.is_empty():
        return None
    rows = frame.group_by("verdict").len().sort("len", descending=True).rows()
    return table("Printed numbers against these people", ["verdict", "numbers"], [list(row) for row in rows])


LESION_PARTS = (_segmentation, _burden, _sources, _agreement, _groups, _published)
