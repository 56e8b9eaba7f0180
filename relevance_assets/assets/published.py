"""The stage `published_comparison`: what the study's publication reports, beside what was found here.

Belongs here: which of our tables it is compared with. Does not belong here: the published numbers and the comparison
(`statistics/published.py`).
"""

from __future__ import annotations

from typing import Any

from relevance_assets.assets.cohort import upstream
from relevance_assets.assets.stages import ALL, Done, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint

__all__ = ["published_stages"]

SOURCES = ("scores", "correlations")  # whose tables published numbers are compared with


def published_stages(workspace: Workspace, stages: list[Stage]) -> list[Stage]:
    """The stage, where numbers of this study's publication are known."""
    from relevance_assets.statistics.published import published_numbers

    study = workspace.study
    published = published_numbers(study.name)
    synthetic = study.cohort.bids is None or bool(study.cohort.truth_regions)  # truth is known of planted effects only
    needs = tuple(stage.name for stage in stages if stage.name in SOURCES)

    def inputs(_: str) -> Any:
        return [published, [upstream(workspace, name, ALL) for name in needs], synthetic]

    def make(_: str) -> Done:
        from relevance_assets.statistics.published import compare

        note = "ours: synthetic people" if synthetic else ""
        frame = compare(published, workspace.read, not synthetic, note)
        counts = dict(frame.group_by("verdict").len().sort("verdict").iter_rows())
        return Done(
            tables={"published_comparison": frame},
            result=fingerprint(frame.rows()),
            metadata={f"numbers_{verdict.replace(' ', '_')}": count for verdict, count in counts.items()},
        )

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
