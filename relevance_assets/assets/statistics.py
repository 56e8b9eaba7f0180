"""Stages over the whole cohort: what the masks' contents have to do with the disease, and whether it was found before.

Belongs here: the stages `correlations`, `localisation_summary` and `published_comparison`. Does not belong here: the
tests themselves (`statistics/`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.models import people
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each, tick
from relevance_assets.assets.workspace import COMBINED, Workspace
from relevance_assets.files import fingerprint
from relevance_assets.tables.schema import TABLES

if TYPE_CHECKING:
    import numpy as np

__all__ = ["statistics_stages"]


def statistics_stages(workspace: Workspace) -> list[Stage]:
    study = workspace.study
    stages = [_localisation_summary(workspace)] if study.cohort.truth_regions else []
    if study.statistics.correlate_with:
        stages.append(_correlations(workspace))
    return stages


# -------------------------------------------------------------------------------------------- localisation_summary
def _localisation_summary(workspace: Workspace) -> Stage:
    study = workspace.study

    def inputs(_: str) -> Any:
        results = workspace.results("localisation")
        if not results:
            raise NotReady("nothing localised yet: localisation")
        persons = workspace.read("scans").filter(pl.col("scan").is_in(list(results))).select("scan", "participant_id")
        return [
            results,
            persons.rows(),
            study.statistics.model_dump(mode="json", include={"bootstrap", "confidence", "seed"}),
        ]

    def make(_: str) -> Done:
        from relevance_assets.statistics.localisation import localisation_summary

        frame = localisation_summary(
            _localised(workspace),
            bootstrap=study.statistics.bootstrap,
            confidence=study.statistics.confidence,
            seed=study.statistics.seed,
        )
        best = frame.filter((pl.col("metric") == "auc") & pl.col("difference").is_not_null())
        best = best.sort("difference", descending=True).group_by("region", maintain_order=True).first()
        return Done(
            tables={"localisation_summary": frame},
            result=fingerprint(frame.rows()),
            metadata={
                f"best_auc_{row['region']}": f"{row['method']} {row['contrast']} {row['value']:.3f} "
                f"(shifted {row['chance']:.3f})"
                for row in best.iter_rows(named=True)
            },
        )

    return Stage(
        name="localisation_summary",
        version="1",
        description="Over scans: whether relevance lies where the truth is, more than in the same region shifted "
        "elsewhere, with a bootstrap interval over people.",
        tables=("localisation_summary",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("localisation",),
        kinds=frozenset({"polars"}),
        group="statistics",
    )


def _localised(workspace: Workspace) -> pl.DataFrame:
    """What is summed up, with the person; texts are categories, which take a fraction of the memory."""
    people = workspace.read("scans").select("scan", "participant_id")
    needed = ("scan", "participant_id", "method", "contrast", "region", "metric", "value", "chance")
    return pl.concat(
        part.join(people, on="scan").select(needed).with_columns(pl.col(pl.String).cast(pl.Categorical))
        for part in workspace.parts("localisation")
    )


# ---------------------------------------------------------------------------------------------------- correlations
def _correlations(workspace: Workspace) -> Stage:
    study = workspace.study
    column = study.statistics.correlate_with
    assert column is not None

    def inputs(_: str) -> Any:
        results = workspace.results("quantile_masks")
        if not results:
            raise NotReady("no masks yet: quantile_masks")
        if set(study.statistics.adjust_for) & set(study.cohort.truth_regions) and not workspace.results("localisation"):
            raise NotReady("no volume of a region measured yet: localisation")
        values = _values(workspace, column)
        held = {name: _covariate(workspace, name, values["scan"].to_list()) for name in study.statistics.adjust_for}
        covariates = {name: found.tolist() for name, found in held.items()}
        return [results, values.rows(), covariates, study.statistics.model_dump(mode="json")]

    def make(_: str) -> Done:
        import numpy as np

        from relevance_assets.cohort.visits import first_scans
        from relevance_assets.statistics.correlation import spearman_family
        from relevance_assets.statistics.partial import partial_spearman_family

        values = _values(workspace, column)
        names, wide = _measures(workspace, values["scan"].to_list())
        # Two scans of a person are not exchangeable: the second analysis takes each person's first scan only.
        first = values["scan"].is_in(first_scans(values, column)["scan"].to_list()).to_numpy()
        everybody = np.ones(values.height, dtype=bool)
        adjusted = study.statistics.adjust_for
        analyses: list[tuple[str, np.ndarray, list[str]]] = [("all scans", everybody, []), ("first scans", first, [])]
        if adjusted:
            what = f"adjusted for {', '.join(adjusted)}"
            analyses += [(f"all scans, {what}", everybody, adjusted), (f"first scans, {what}", first, adjusted)]
        frames = []
        for number, (who, chosen, held) in enumerate(analyses):
            tick(number / len(analyses), who)
            shared: dict[str, Any] = {
                "permutations": study.statistics.permutations,
                "bootstrap": study.statistics.bootstrap,
                "confidence": study.statistics.confidence,
                "groups": values.filter(pl.Series(chosen))["participant_id"].to_list(),
                "seed": study.statistics.seed,
            }
            x, y = wide[chosen], values[column].to_numpy()[chosen]
            if held:
                z = np.stack([_covariate(workspace, name, values["scan"].to_list()) for name in held], axis=1)
                family = partial_spearman_family(x, y, z[chosen], **shared)
            else:
                family = spearman_family(x, y, **shared)
            frames.append(
                pl.concat([names, family.drop("name")], how="horizontal").with_columns(
                    analysis=pl.col("method") + f", {who}",
                    y=pl.lit(column),
                    statistic=pl.lit("partial_spearman_rho" if held else "spearman_rho"),
                )
            )
        frame = pl.concat(frames).drop("method")
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
        version="3",
        description=f"Spearman correlation of the mean inside every mask with {column}, also with covariates held "
        "fixed: permutation p, corrected by the maximum statistic over all methods, masks and images, and by false "
        "discovery rate; bootstrap interval.",
        tables=("correlations",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("quantile_masks", *(("localisation",) if study.cohort.truth_regions else ())),
        kinds=frozenset({"scipy", "polars"}),
        group="statistics",
    )


def _measures(workspace: Workspace, scans: list[str]) -> tuple[pl.DataFrame, np.ndarray]:
    """The family: method, x (image) and stratum (mask) of each column, and the means, (scans, columns)."""
    import numpy as np

    key = ["method", "image", "contrast", "sign", "top_percent"]
    # A map of one contrast masks that contrast; the combined map masks every contrast.
    wanted = ((pl.col("contrast") == pl.col("image")) | (pl.col("contrast") == COMBINED)) & pl.col("method").is_in(
        list(workspace.study.methods)
    )
    rows = pl.DataFrame({"scan": scans}, schema={"scan": pl.String}).with_row_index("row")
    columns: dict[tuple[Any, ...], np.ndarray] = {}
    for part in workspace.parts("mask_measures"):
        found = part.filter(wanted).join(rows, on="scan", how="left").select(*key, "row", "mean")
        for mask, means in found.partition_by(key, as_dict=True, include_key=False).items():
            column = columns.setdefault(mask, np.full(len(scans), np.nan))
            known = means.drop_nulls()
            column[known["row"].to_numpy()] = known["mean"].to_numpy()
    order = sorted(columns)
    wide = np.empty((len(scans), len(order)))
    for index, mask in enumerate(order):
        wide[:, index] = columns.pop(mask)
    masks = pl.DataFrame(order, schema={name: TABLES["mask_measures"].schema[name] for name in key}, orient="row")
    names = masks.select(
        "method",
        x="image",
        stratum=pl.col("contrast")
        + pl.when(pl.col("sign") == "negative").then(pl.lit(" negative")).otherwise(pl.lit(""))
        + " top "
        + pl.col("top_percent").cast(pl.String)
        + " %",
    )
    return names, wide


def _covariate(workspace: Workspace, name: str, scans: list[str]) -> np.ndarray:
    """A column of the participants (sex: 1 for F), or the volume of a truth region, by scan; NaN where unknown."""
    from relevance_assets.cohort.participants import column_values

    order = pl.DataFrame({"scan": scans}, schema={"scan": pl.String})
    if name in workspace.study.cohort.truth_regions:
        volumes = workspace.read("region_volumes").filter(pl.col("region") == name)
        found = order.join(volumes, on="scan", how="left", maintain_order="left")["volume_mm3"]
    else:
        frame = order.join(workspace.read("scans"), on="scan", how="left", maintain_order="left")
        if name == "sex":
            found = frame.select(
                pl.col("sex").str.to_uppercase().str.head(1).replace_strict({"F": 1.0, "M": 0.0}, default=None)
            ).to_series()
        else:
            found = column_values(frame, name)
    if found.null_count() == len(found):
        raise ValueError(f"statistics.adjust_for: no scan has {name}; name a column of participants.tsv")
    return found.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _values(workspace: Workspace, column: str) -> pl.DataFrame:
    """Scan, person, session, age and the column, for scans that have masks, in order of the scan."""
    scans = sorted(workspace.results("quantile_masks"))
    numbers = pl.col(*dict.fromkeys(["age", column])).cast(pl.Float64)  # the column may be the age itself
    return people(workspace, scans).select("scan", "participant_id", "session", numbers)
