"""All statistics of a subject table: where the lesions are, and in whom.

Belongs here: putting the tables together. Does not belong here: any of them (`groups.py`, `regressions.py`,
`compositions.py`, `profile_correlations.py`, `descriptives.py`), reading files, writing tables.
"""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from relevance_assets.statistics.compositions import composition_comparisons, composition_correlations
from relevance_assets.statistics.descriptives import descriptives
from relevance_assets.statistics.groups import draws, group_comparisons
from relevance_assets.statistics.lesion_profile import FLAGS, outliers
from relevance_assets.statistics.people import variants
from relevance_assets.statistics.profile_correlations import correlations
from relevance_assets.statistics.regressions import regressions

__all__ = ["lesion_statistics", "table_makers"]


def table_makers(
    subjects: pl.DataFrame, *, seed: int = 0, resamples: int = 10_000
) -> dict[str, Callable[[], pl.DataFrame]]:
    """What makes each table of `lesion_statistics`, by its name; nothing is computed yet but who is an outlier."""
    people = variants(subjects)
    draw = draws(resamples, seed)
    return {
        "group_comparisons": lambda: pl.concat(
            [group_comparisons(people, draw), composition_comparisons(people, draw)]
        ),
        "correlations": lambda: pl.concat([correlations(people), composition_correlations(people)]),
        "regressions": lambda: regressions(people),
        "descriptives": lambda: descriptives(people, draw),
        "outliers": lambda: flagged(people["all"].frame),
    }


def lesion_statistics(subjects: pl.DataFrame, *, seed: int = 0, resamples: int = 10_000) -> dict[str, pl.DataFrame]:
    """The tables group_comparisons, correlations, regressions, descriptives and outliers of a subject table.

    Every row says by itself what it is: `recipe` is `as_published` (MS-DeepBrain-Study's, faults included) or `sound`,
    `variant` is `all` or `without_outliers` (of the study's rule), `filter` is an SQL condition that gives the row's
    people when it is applied to the variant's subjects. Groups are named HC and MS; what needs both is left out where
    there is one. Sexes are 0 (female) and 1 (male).

    Parameters
    ----------
    subjects : columns as `lesion_profile.read_subjects` gives them, one row per person; null or NaN where unknown.
    seed, resamples : of the bootstrap.
    """
    return {name: make() for name, make in table_makers(subjects, seed=seed, resamples=resamples).items()}


def flagged(subjects: pl.DataFrame) -> pl.DataFrame:
    """Everybody with a flag of the study's outlier rule, and whether that removes them (three flags or more).

    Returns
    -------
    participant_id, group, band, sex, flags, removed, variables (`; ` between them), filter.
    """
    found = outliers(subjects, fewest=1)
    name = pl.col("group").str.replace_all("'", "''", literal=True)
    text = pl.concat_str(pl.lit('"group" = \''), name, pl.lit("' AND band = '"), pl.col("band"), pl.lit("'"))
    columns = ("participant_id", "group", "band", "sex", "flags", "removed", "variables", "filter")
    return found.with_columns((pl.col("flags") >= FLAGS).alias("removed"), text.alias("filter")).select(columns)
