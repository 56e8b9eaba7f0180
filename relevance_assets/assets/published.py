"""The stage `published_comparison`: what the study's publication reports, beside what was found here.

Belongs here: which of our tables it is compared with. Does not belong here: the published numbers and the comparison
(`statistics/published.py`).
"""

from __future__ import annotations

from typing import Any

import polars as pl

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.stages import ALL, Done, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint
from relevance_assets.tables.schema import TABLES

__all__ = ["published_stages"]

PROFILE = "lesion_profile"  # the study whose printed numbers come from a subject table
PEOPLE = {"HC": 999, "MS": 381}  # of that table: any other is of other people
SOURCES = ("scores", "correlations")  # whose tables published numbers are compared with


def published_stages(workspace: Workspace, stages: list[Stage]) -> list[Stage]:
    """The stage, where numbers of this study's publication are known."""
    from relevance_assets.statistics.published import published_numbers

    study = workspace.study
    if study.lesions and study.name == PROFILE:
        return [_profile(workspace)]
    published = published_numbers(study.name)
    synthetic = study.cohort.bids is None or bool(study.cohort.truth_regions)  # truth is known of planted effects only
    needs = tuple(stage.name for stage in stages if stage.name in SOURCES)

    def inputs(_: str) -> Any:
        return [published, [upstream(workspace, name, ALL) for name in needs], synthetic]

    def make(_: str) -> Done:
        from relevance_assets.statistics.published import compare

        note = "ours: synthetic people" if synthetic else ""
        frame = compare(published, workspace.read, not synthetic, note)
        return _compared(frame)

    stage = Stage(
        name="published_comparison",
        version="1",
        description="Every number of the study's publication beside ours, with a verdict; numbers that the publication "
        "gives twice, differently, are named.",
        tables=("published_comparison",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=needs,
        kinds=frozenset({"polars"}),
        group="statistics",
    )
    return [stage] if published and needs else []


def _compared(frame: pl.DataFrame) -> Done:
    """The table, and how many numbers have which verdict."""
    counts = dict(frame.group_by("verdict").len().sort("verdict").iter_rows())
    return Done(
        tables={"published_comparison": frame},
        result=fingerprint(frame.rows()),
        metadata={f"numbers_{verdict.replace(' ', '_')}": count for verdict, count in counts.items()},
    )


def _profile(workspace: Workspace) -> Stage:
    """Printed numbers beside those of the subject table; comparable where that is the study's own, by its people."""

    def inputs(_: str) -> Any:
        return upstream(workspace, "subject_table", ALL)

    def make(_: str) -> Done:
        from relevance_assets.assets.lesion_statistics import profile_of
        from relevance_assets.statistics.lesion_profile_published import published_lesion_profile

        profile = profile_of(workspace)
        if missing := sorted({"HC", "MS"} - set(profile["group"])):
            empty = TABLES["published_comparison"].empty().drop("study")
            return Done({"published_comparison": empty}, "nothing", {"no_people_of_group": ", ".join(missing)})
        groups = dict(profile.group_by("group").len().iter_rows())
        comparable = workspace.study.cohort.subjects is not None and groups == PEOPLE
        found = published_lesion_profile(profile)
        frame = found.select(
            "published",
            "ours",
            "n",
            "verdict",
            "note",
            "recipe",
            measure=pl.concat_str("place", pl.lit(": "), "measure"),
            printed="text",
            unit=pl.lit(""),
            n_published=pl.lit(None, pl.Int64),
            comparable=pl.lit(comparable),
        )
        if not comparable:
            # Other people: what agrees does so by chance, what differs refutes nothing.
            note = pl.lit("ours: other people than the publication's; ") + pl.col("note").fill_null("")
            frame = frame.with_columns(note=note.str.strip_suffix("; "))
        return _compared(frame)

    return Stage(
        name="published_comparison",
        version="profile-1",
        description="Every printed number of the study that a subject table can answer, by the recipe that gives it, "
        "with a verdict.",
        tables=("published_comparison",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=("subject_table",),
        kinds=frozenset({"polars"}),
        group="statistics",
    )
