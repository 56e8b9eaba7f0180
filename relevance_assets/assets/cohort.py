"""Stages about the cohort: who takes part, which files, are they sound, who is held out.

Belongs here: the stages `participants`, `raw_scans`, `splits`. Does not belong here: how a BIDS folder is read
(`cohort/`), the stage between them (`preparation.py`).
"""

from __future__ import annotations

import json
import math
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import polars as pl

from relevance_assets.assets.mask_sources import has_masks
from relevance_assets.assets.stages import ALL, Done, NotReady, Stage, each
from relevance_assets.assets.workspace import Workspace
from relevance_assets.files import fingerprint

if TYPE_CHECKING:
    from relevance_assets.cohort.bids import ScanFiles
    from relevance_assets.cohort.watch import Folder

__all__ = ["MANY", "SETTLED_BY", "cohort_stages", "held_back", "refuse_many_gone", "upstream"]

MANY = 0.5  # share of scans that do not vanish together unless a person asks
# New scans whose files changed after this moment are left alone: never where a person asks, as the study says where the
# service does.
SETTLED_BY: ContextVar[float] = ContextVar("settled_by", default=math.inf)


def upstream(workspace: Workspace, asset: str, item: str) -> str:
    """The result of an earlier stage's item; NotReady, with the cause, where there is none."""
    found = workspace.known(asset, item)
    if found is None:
        raise NotReady(f"{item}: not made yet: {asset}")
    if found.outcome != "ok":
        raise NotReady(f"{item}: {asset} failed: {found.reason}")
    return found.result


def cohort_stages(workspace: Workspace) -> list[Stage]:
    from relevance_assets.assets.preparation import preparation_stages

    learns = workspace.study.model or workspace.study.segmentation
    splits = [_splits(workspace)] if learns else []
    return [_participants(workspace), _raw_scans(workspace), *preparation_stages(workspace), *splits]


# ------------------------------------------------------------------------------------------------ participants
def _participants(workspace: Workspace) -> Stage:
    study = workspace.study

    def inputs(_: str) -> Any:
        folder = workspace.folder()
        settings = study.cohort.model_dump(mode="json", exclude={"truth_regions", "bids"})
        contrasts = [contrast.model_dump(mode="json") for contrast in study.contrasts]
        return [folder.without(held_back(workspace, folder)).signature, settings, contrasts]

    def make(_: str) -> Done:
        from relevance_assets.cohort.bids import index_scans
        from relevance_assets.cohort.participants import cohort_table, participants_table, read_participants

        late = held_back(workspace, workspace.folder())
        scans = index_scans(workspace.bids, study.contrasts)
        people = read_participants(workspace.bids)
        frame = cohort_table(study, scans, people)
        frame = frame.filter(~pl.col("scan").is_in(sorted(late)))
        counts = dict(frame.group_by("status").len().iter_rows())
        refuse_many_gone(workspace, frame, "participants.tsv")
        if not counts.get("ok"):
            reasons = frame.filter(pl.col("reason").is_not_null())["reason"].to_list()
            raise ValueError(f"{workspace.bids}: no usable scan; {reasons[0] if reasons else 'no image found'}")
        return Done(
            tables={
                "participants": participants_table(people),
                "scans": frame,
            },
            result=fingerprint(frame.sort("scan").rows()),
            metadata={f"scans_{status}": count for status, count in sorted(counts.items())},
        )

    return Stage(
        name="participants",
        version="3",
        description="Who takes part: participants.tsv and sessions.tsv joined to the scans found in the BIDS folder. "
        "Registers one partition per usable scan.",
        tables=("participants", "scans"),
        lasting=True,
        items=lambda: [ALL],
        inputs=inputs,
        work=each(make),
        external=() if study.cohort.bids else ("synthetic_cohort",),
        kinds=frozenset({"bids", "polars"}),
    )


def held_back(workspace: Workspace, folder: Folder) -> set[str]:
    """Scans that somebody may still be copying, and that are not in the cohort yet."""
    return folder.changed_after(SETTLED_BY.get()) - workspace.derived("scans", "names", _names)


def refuse_many_gone(workspace: Workspace, frame: pl.DataFrame, listed: str) -> None:
    """Raise ValueError where the service, unlike a person, would take most scans out: a disk may be missing.

    Parameters
    ----------
    frame
        The new table `scans`.
    listed
        The file that lists scans or people.
    """
    known = set(workspace.known_scans()["scan"])
    gone = known - set(frame.filter(pl.col("status") == "ok")["scan"])
    if SETTLED_BY.get() < math.inf and len(gone) > max(1, MANY * len(known)):
        raise ValueError(
            f"{len(gone)} of {len(known)} scans would leave the study, {min(gone)} first: are the disk and "
            f"{listed} whole? If they are to go, `relevance-assets run {workspace.study.name}` takes them out"
        )


# --------------------------------------------------------------------------------------------------- raw scans
def _raw_scans(workspace: Workspace) -> Stage:
    study = workspace.study
    contrasts = [contrast.model_dump(mode="json", exclude={"scale"}) for contrast in study.contrasts]

    def files(scan: str) -> ScanFiles:
        from relevance_assets.cohort.bids import find_scan

        return find_scan(workspace.bids, scan, study.contrasts)

    def inputs(scan: str) -> Any:
        upstream(workspace, "participants", ALL)
        return [workspace.signature(scan), contrasts]

    def make(scan: str) -> Done:
        from relevance_assets.cohort.check import check_image

        found = files(scan)
        if found.problems:
            raise ValueError("; ".join(found.problems))
        rows = []
        for contrast in study.contrasts:
            path = found.images[contrast.name]
            said = found.sidecars.get(contrast.name, {})
            row = check_image(path)
            rows.append(
                row
                | {
                    "scan": scan,
                    "image": contrast.name,
                    "path": str(path.relative_to(workspace.bids)),
                    "unit": said.get("Units"),
                    "sidecar": json.dumps(said, sort_keys=True),
                }
            )
        frame = pl.DataFrame(rows)
        return Done(
            tables={"raw_scans": frame},
            result=fingerprint(frame.select("image", "sha256").rows()),
            metadata={
                "voxel_mm": " x ".join(f"{rows[0][f'voxel_{axis}_mm']:g}" for axis in "xyz"),
                "orientation": rows[0]["orientation"],
                "megabytes": round(sum(row["bytes"] for row in rows) / 1e6, 2),
            },
        )

    return Stage(
        name="raw_scans",
        version="3",
        description="Each scan's images as found: hash, shape, voxel size, orientation, unit, sidecar. Unreadable, "
        "non-finite or misshapen images stop here. The BIDS folder is never changed.",
        tables=("raw_scans",),
        items=lambda: workspace.known_scans()["scan"].to_list(),
        inputs=inputs,
        work=each(make),
        partition="scan",
        parallel=True,
        needs=("participants",),
        kinds=frozenset({"nifti", "bids"}),
        group="imaging",
    )


# ------------------------------------------------------------------------------------------------------ splits
def _splits(workspace: Workspace) -> Stage:
    study = workspace.study
    network = study.segmentation
    settings = [
        study.split.model_dump(mode="json"),
        network.learn_from if network else study.target.model_dump(mode="json"),
    ]

    def usable() -> pl.DataFrame:
        """Scans that can be used, and what they are divided by."""
        prepared = list(workspace.results("prepared_volumes"))
        frame = workspace.known_scans().filter(pl.col("scan").is_in(prepared))
        if not network:
            return frame.select("scan", "participant_id", "target")
        labelled = [has_masks(workspace, scan, network.learn_from) for scan in frame["scan"]]
        return frame.select("scan", "participant_id", labelled=pl.Series(labelled, dtype=pl.Boolean))

    def inputs(_: str) -> Any:
        frame = usable()
        if frame.is_empty():
            raise NotReady("no prepared scan yet: prepared_volumes")
        return frame.rows()

    def divide(cohort: pl.DataFrame) -> pl.DataFrame:
        from relevance_assets.cohort.splits import extend_splits, fold_people, split_scans

        if not network:
            return split_scans(cohort, study.target, study.split)
        return extend_splits(fold_people(cohort.filter("labelled"), study.split), cohort)

    def make(_: str) -> Done:
        from relevance_assets.cohort.splits import extend_splits

        cohort = usable()
        drawn = fingerprint(settings)
        before = workspace.read("splits").filter(pl.col("draw").str.starts_with(drawn))
        if before.is_empty():
            draw = f"{drawn}-{fingerprint(cohort.rows())[:8]}"
            frame = divide(cohort)
        else:
            draw = before["draw"][0]
            frame = extend_splits(pl.concat([before, _trained_on(workspace)], how="diagonal"), cohort)
        counts = dict(frame.group_by("set").len().iter_rows())
        late = frame.filter(pl.col("set") == "new").join(cohort.filter("labelled"), on="scan") if network else None
        return Done(
            tables={"splits": frame.with_columns(draw=pl.lit(draw))},
            result=draw,
            metadata={f"scans_{name}": counts.get(name, 0) for name in ("train", "test", "new")}
            | {"folds": frame["fold"].drop_nulls().n_unique()}
            | ({"scans_with_masks_not_learnt_from": late.height} if late is not None else {}),
        )

    return Stage(
        name="splits",
        version="2",
        description="People held out for the test, and stratified folds of the rest. All scans of a person are on one "
        "side. Drawn once: who comes later is new, unseen by every model, until all is divided and trained anew.",
        tables=("splits",),
        lasting=True,
        items=lambda: [ALL],
        settings=settings,
        inputs=inputs,
        work=each(make),
        needs=("participants", "prepared_volumes"),
        kinds=frozenset({"scikitlearn", "polars"}),
        group="model",
        resets=lambda: next(iter(workspace.read("splits")["draw"]), None),
    )


def _names(scans: pl.DataFrame) -> set[str]:
    return set(scans["scan"])


def _trained_on(workspace: Workspace) -> pl.DataFrame:
    """Sides of the people that today's models were trained on: one who left and comes back is not new to them."""
    held_out = "test" if workspace.study.segmentation else "validation"
    frame = workspace.read("training_scans").filter(pl.col("set") == held_out)
    return frame.select("participant_id", set=pl.lit("train"), fold=pl.col("fold").cast(pl.Int64))
