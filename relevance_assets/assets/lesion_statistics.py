"""Stages `lesion_statistics` and `correlations` of a study of lesions: where lesions are, and in whom.

Belongs here: from the subject table to the statistics' own, and which figures are drawn of what. Does not belong here:
the statistics (`statistics/`), drawing (`report/`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.stages import ALL, Done, Stage, each, tick
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["lesion_statistics_stages", "profile_of"]

TABLES = ("group_comparisons", "regressions", "descriptives", "outliers")
FIGURES = ("lesionBurdenByAge", "lesionShares", "lesionCorrelations", "adjustedEffects")
ZONES = ("periventricular", "paraventricular", "juxtacortical")
VARIABLES = {
    "age": "age",
    "ventricle_ratio": "ventricles, % of brain",
    "lesion_ratio": "lesions, % of brain",
    **{f"{zone}_ratio": f"{zone}, % of lesions" for zone in ZONES},
}


def lesion_statistics_stages(workspace: Workspace) -> list[Stage]:
    return [_lesion_statistics(workspace), _correlations(workspace)]


def profile_of(workspace: Workspace) -> pl.DataFrame:
    """The subject table as the statistics take it: sizes as `_area`, sex 0 (F) or 1 (M), ratios and age bands."""
    from relevance_assets.cohort.subjects import PARTS
    from relevance_assets.statistics.lesion_profile import with_ratios

    subjects = workspace.read("subjects").sort("participant_id")
    sex = pl.col("sex").replace_strict({"F": 0.0, "M": 1.0}, default=None, return_dtype=pl.Float64)
    sizes = (pl.col(part).alias(f"{part}_area") for part in PARTS)
    return with_ratios(subjects.select("participant_id", "age", sex, "group", *sizes))


def _settings(workspace: Workspace) -> dict[str, Any]:
    return {"seed": workspace.study.statistics.seed, "resamples": workspace.study.statistics.bootstrap}


def _lesion_statistics(workspace: Workspace) -> Stage:
    figures = {name: workspace.figure_path(name) for name in FIGURES}

    def inputs(_: str) -> Any:
        return [upstream(workspace, "subject_table", ALL), _settings(workspace)]

    def make(_: str) -> Done:
        from relevance_assets.assets.metadata import picture
        from relevance_assets.report.figures import save, thumbnail
        from relevance_assets.statistics.lesion_statistics import table_makers

        profile = profile_of(workspace)
        tables = {}
        makers = table_makers(profile, **_settings(workspace))
        for number, name in enumerate((*TABLES, "correlations")):
            tick(number / (len(makers) + 1), name.replace("_", " "))
            tables[name] = makers[name]()
        tick(len(makers) / (len(makers) + 1), "figures")
        correlations = tables.pop("correlations")
        sex = pl.when(pl.col("sex") == 1).then(pl.lit("M")).when(pl.col("sex") == 0).then(pl.lit("F"))
        tables["outliers"] = tables["outliers"].with_columns(sex=sex)
        shown = {}
        drawn = dict(_figures(profile, tables, correlations))
        for name, path in figures.items():
            path.unlink(missing_ok=True)
            if name in drawn:
                save(drawn[name], path)
                shown[name] = picture(thumbnail(drawn[name]), name)
        return Done(
            tables=tables,
            result=fingerprint(*(frame.rows() for frame in tables.values())),
            metadata={
                "people": profile.height,
                "outliers": tables["outliers"].filter("removed").height,
                "tests": tables["group_comparisons"].height + tables["regressions"].height,
            }
            | shown,
        )

    return Stage(
        name="lesion_statistics",
        version="1",
        description="Groups compared, regressions adjusted for age and sex, summaries by age band, outliers: each by "
        "the published recipe, faults included, and by a sound one. Every row has its n and the filter that made it.",
        tables=TABLES,
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("subject_table",),
        kinds=frozenset({"scipy", "polars", "matplotlib"}),
        group="statistics",
    )


def _correlations(workspace: Workspace) -> Stage:
    def inputs(_: str) -> Any:
        return [upstream(workspace, "subject_table", ALL), _settings(workspace)]

    def make(_: str) -> Done:
        from relevance_assets.statistics.lesion_statistics import table_makers

        found = table_makers(profile_of(workspace), **_settings(workspace))["correlations"]()
        # The table's rows say in `analysis` what they are, whichever study they are of.
        name = pl.concat_str("analysis", "recipe", "variant", separator=", ")
        frame = found.with_columns(analysis=name).rename({"method": "statistic"})
        return Done(
            tables={"correlations": frame},
            result=fingerprint(frame.rows()),
            metadata={
                "pairs": frame.height,
                "corrected_p_below_0.05": frame.filter(pl.col("p_corrected") < 0.05).height,
            },
        )

    return Stage(
        name="correlations",
        version="lesions-1",
        description="Correlations of lesions, ventricles, age and sex in each group: as published, and with intervals, "
        "corrected over their family; zone shares also as log-ratios.",
        tables=("correlations",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("subject_table",),
        kinds=frozenset({"scipy", "polars"}),
        group="statistics",
    )


# ---------------------------------------------------------------------------------------------------------- figures
def _figures(
    profile: pl.DataFrame, tables: dict[str, pl.DataFrame], correlations: pl.DataFrame
) -> Iterator[tuple[str, Figure]]:
    """Those that today's people are enough for."""
    from relevance_assets.report.figures_groups import correlation_matrices_figure, forest_figure
    from relevance_assets.report.figures_lesions import age_burden_figure, zone_shares_figure
    from relevance_assets.statistics.lesion_profile import BANDS

    groups = [group for group in ("HC", "MS") if group in profile["group"]]
    known = profile.drop_nulls(["age", "sex", "lesion_ratio"]).filter(pl.col("group").is_in(groups))
    if not known.is_empty():
        yield FIGURES[0], age_burden_figure(profile, "lesion_ratio", "lesions, % of the brain", groups=groups)
    shares = _band_shares(profile)
    if not shares.is_empty():
        strata = shares["stratum"].unique(maintain_order=True).to_list()
        yield FIGURES[1], zone_shares_figure(shares, strata, BANDS)
    sound = correlations.filter(
        (pl.col("analysis") == "ranks") & (pl.col("recipe") == "sound") & (pl.col("variant") == "all")
    )
    sound = sound.filter(pl.col("value").is_not_null().any().over("stratum"))
    present = [group for group in groups if group in sound["stratum"]]
    if present:
        yield FIGURES[2], correlation_matrices_figure(sound, VARIABLES, present)
    effects = _effects(tables["regressions"])
    if not effects.is_empty():
        yield FIGURES[3], forest_figure(effects, "MS : HC, adjusted for age and sex", ratio=True)


def _band_shares(profile: pl.DataFrame) -> pl.DataFrame:
    """Mean share of each zone by group and age band, of people with lesions."""
    people = profile.filter(pl.col("band").is_not_null() & pl.col("group").is_not_null() & (pl.col("lesion_area") > 0))
    long = people.unpivot(
        [f"{zone}_ratio" for zone in ZONES], index=["group", "band"], variable_name="zone", value_name="share"
    )
    found = long.group_by("group", "band", "zone").agg(pl.col("share").mean(), n=pl.len().cast(pl.Int64))
    return found.with_columns(pl.col("zone").str.strip_suffix("_ratio")).rename({"group": "stratum"}).sort("stratum")


def _effects(regressions: pl.DataFrame) -> pl.DataFrame:
    """Adjusted factors of MS against HC, with and without outliers."""
    rows = regressions.filter((pl.col("analysis") == "adjusted_group") & (pl.col("term") == "group: MS"))
    label = pl.col("outcome").replace({"ventricle_ratio": "ventricles", "lesion_ratio": "lesions"})
    heading = pl.col("variant").replace({"all": "everybody", "without_outliers": "without outliers"})
    return rows.select("estimate", "ci_low", "ci_high", "n", label=label, heading=heading).sort("heading", "label")
