"""Stages over the whole cohort: what the masks' contents have to do with the disease.

Belongs here: the stage `correlations`. Does not belong here: the tests themselves (`statistics/`).
"""

from __future__ import annotations

from typing import Any

import polars as pl

from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each, tick
from relevance_assets.assets.workspace import COMBINED, Workspace
from relevance_assets.files import fingerprint

__all__ = ["statistics_stages"]


def statistics_stages(workspace: Workspace) -> list[Stage]:
    return [_correlations(workspace)] if workspace.study.statistics.correlate_with else []


def _correlations(workspace: Workspace) -> Stage:
    study = workspace.study
    column = study.statistics.correlate_with
    assert column is not None

    def inputs(_: str) -> Any:
        results = workspace.results("quantile_masks")
        if not results:
            raise NotReady("no masks yet: quantile_masks")
        return [results, _values(workspace, column).rows(), study.statistics.model_dump(mode="json")]

    def make(_: str) -> Done:
        import numpy as np

        from relevance_assets.statistics.correlation import spearman_family

        values = _values(workspace, column)
        measures = workspace.read("mask_measures").filter(
            # A map of one contrast masks that contrast; the combined map masks every contrast.
            (pl.col("contrast") == pl.col("image")) | (pl.col("contrast") == COMBINED)
        )
        settings = study.statistics
        frames = []
        for number, method in enumerate(study.methods):
            tick(number / len(study.methods), method)
            wide = measures.filter(pl.col("method") == method).pivot(
                ["image", "contrast", "top_percent"], index="scan", values="mean", separator="|"
            )
            joined = values.join(wide, on="scan", how="left", maintain_order="left")
            names = [name for name in joined.columns if name not in values.columns]
            family = spearman_family(
                joined.select(names).to_numpy().astype(np.float64),
                joined[column].to_numpy().astype(np.float64),
                names=names,
                permutations=settings.permutations,
                bootstrap=settings.bootstrap,
                confidence=settings.confidence,
                seed=settings.seed,
            )
            parts = family["name"].str.strip_chars('{}"').str.replace_all('"', "").str.split_exact("|", 2)
            split = parts.struct.rename_fields(["image", "contrast", "top"]).struct.unnest()
            frames.append(
                family.drop("name").with_columns(
                    analysis=pl.lit(method),
                    x=split["image"],
                    y=pl.lit(column),
                    stratum=split["contrast"] + " top " + split["top"] + " %",
                    statistic=pl.lit("spearman"),
                )
            )
        frame = pl.concat(frames)
        significant = frame.filter(pl.col("p_corrected") < 0.05).height
        strongest = frame.filter(pl.col("value").is_not_null()).sort(pl.col("value").abs(), descending=True).head(1)
        return Done(
            tables={"correlations": frame},
            result=fingerprint(frame.rows()),
            metadata={
                "tests": frame.height,
                "corrected_p_below_0.05": significant,
                "strongest": str(strongest.select("analysis", "x", "stratum", "value").rows()[:1]),
            },
        )

    return Stage(
        name="correlations",
        version="1",
        description=f"Spearman correlation of the mean inside every mask with {column}: permutation p, corrected over "
        "the family of each method by the maximum statistic, bootstrap interval.",
        tables=("correlations",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("quantile_masks",),
        kinds=frozenset({"scipy", "polars"}),
        group="statistics",
    )


def _values(workspace: Workspace, column: str) -> pl.DataFrame:
    """`scan` and the column, for scans that have masks, in order of the scan."""
    scans = list(workspace.results("quantile_masks"))
    return workspace.known_scans().filter(pl.col("scan").is_in(scans)).select("scan", pl.col(column).cast(pl.Float64))
