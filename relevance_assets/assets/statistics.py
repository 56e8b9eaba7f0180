"""Stages over the whole cohort: what the masks' contents have to do with the disease.

Belongs here: the stage `correlations`. Does not belong here: the tests themselves (`statistics/`).
"""

from __future__ import annotations

from typing import Any

import polars as pl

from relevance_assets.assets.models import people
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
        # Two scans of a person are not exchangeable: the second analysis takes each person's first scan only.
        first = values.unique("participant_id", keep="first", maintain_order=True)
        analyses = [(method, who) for method in study.methods for who in ("all scans", "first scans")]
        settings = study.statistics
        frames = []
        for number, (method, who) in enumerate(analyses):
            tick(number / len(analyses), f"{method}, {who}")
            chosen = values if who == "all scans" else first
            long = measures.filter(pl.col("method") == method)
            masks = long.select("image", "contrast", "top_percent").unique().sort("image", "contrast", "top_percent")
            wide = np.full((chosen.height, masks.height), np.nan)
            rows = {scan: index for index, scan in enumerate(chosen["scan"])}
            columns = {mask: index for index, mask in enumerate(masks.iter_rows())}
            for scan, mean, *mask in long.select("scan", "mean", "image", "contrast", "top_percent").iter_rows():
                if scan in rows and mean is not None:
                    wide[rows[scan], columns[tuple(mask)]] = mean
            family = spearman_family(
                wide,
                chosen[column].to_numpy(),
                permutations=settings.permutations,
                bootstrap=settings.bootstrap,
                confidence=settings.confidence,
                groups=chosen["participant_id"].to_list(),
                seed=settings.seed,
            )
            frames.append(
                family.drop("name").with_columns(
                    analysis=pl.lit(f"{method}, {who}"),
                    x=masks["image"],
                    y=pl.lit(column),
                    stratum=masks["contrast"] + " top " + masks["top_percent"].cast(pl.String) + " %",
                    statistic=pl.lit("spearman_rho"),
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
    """Scan, person and the column, for scans that have masks, in order of the scan."""
    scans = sorted(workspace.results("quantile_masks"))
    return people(workspace, scans).select("scan", "participant_id", pl.col(column).cast(pl.Float64))
