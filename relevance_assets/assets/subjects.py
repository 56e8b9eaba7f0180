"""The stage `subject_table`: one row per person, from images or from a finished table.

Belongs here: which scan stands for a person, and whose lesions. Does not belong here: reading a finished table
(`cohort/subjects.py`), statistics (`lesion_statistics.py`).
"""

from __future__ import annotations

from typing import Any

import polars as pl

from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.cohort.subjects import PARTS, SUBJECTS, read_subject_table
from relevance_assets.files import fingerprint, sha256

__all__ = ["subject_stages"]


def subject_stages(workspace: Workspace) -> list[Stage]:
    return [_subject_table(workspace)]


def _subject_table(workspace: Workspace) -> Stage:
    study = workspace.study
    lesions, given = study.lesions, study.cohort.subjects
    assert lesions is not None
    source = lesions.source or next(iter(lesions.sources))

    def inputs(_: str) -> Any:
        if given is not None:
            if not given.is_file():
                read_subject_table(given)  # says what is wrong
            return sha256(given)
        results = workspace.results("lesions")
        if not results:
            raise NotReady("no lesions measured yet: lesions")
        return [results, _persons(workspace).rows(), source, lesions.rule]

    def make(_: str) -> Done:
        if given is not None:
            frame = read_subject_table(given).with_columns(scan=pl.lit(None, pl.String), unit=pl.lit("as given"))
        else:
            frame = _from_images(workspace, source, lesions.rule)
        groups = dict(frame.group_by("group").len().sort("group").iter_rows())
        return Done(
            tables={"subjects": frame},
            result=fingerprint(frame.rows()),
            metadata={"people": frame.height, "source": given.name if given else f"{source}, {lesions.rule}"}
            | {f"people_{group or 'without group'}": count for group, count in groups.items()},
        )

    return Stage(
        name="subject_table",
        version="1",
        description="One row per person: brain, ventricles, and lesions by zone. From the first scan of each whose "
        "lesions have zones, or a finished table that was imported.",
        tables=("subjects",),
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        needs=() if given else ("participants", "lesions"),
        kinds=frozenset({"polars"}),
        group="statistics",
    )


def _persons(workspace: Workspace) -> pl.DataFrame:
    columns = ("scan", "participant_id", "session", "age", "sex", "group")
    return workspace.known_scans().select(columns).sort("scan")


def _from_images(workspace: Workspace, source: str, rule: str) -> pl.DataFrame:
    """First scans of all people; volumes in mm³."""
    from relevance_assets.cohort.visits import first_scans

    burden = workspace.read("lesion_burden").filter((pl.col("source") == source) & (pl.col("rule") == rule))
    if burden.is_empty():
        raise ValueError(f"no scan has lesions of source {source}; lesions.source names one of lesions.sources")
    zones = burden.pivot("zone", index="scan", values="volume_mm3").rename({"all": "lesion"})
    totals = workspace.read("lesion_totals").filter(pl.col("source") == source)
    wide = zones.join(totals, on="scan").join(_persons(workspace), on="scan")
    wide = wide.rename({"intracranial_mm3": "intracranial", "ventricle_mm3": "ventricle"})
    # whose zones are not known (no ventricles found) says nothing about any group
    first = first_scans(wide.drop_nulls(PARTS).sort("scan"), "lesion")
    sex = pl.col("sex").str.to_uppercase().str.head(1)
    known = first.with_columns(sex=pl.when(sex.is_in(["F", "M"])).then(sex), unit=pl.lit("mm³"))
    return known.select(*SUBJECTS, "scan", "unit").with_columns(pl.col(PARTS).cast(pl.Float64))
